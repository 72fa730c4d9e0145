//! The bodies of the fuzz targets on a few hundred random inputs.

use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// Inputs are long and their bytes all matter, so shrinking them to the end would take minutes.
fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        max_shrink_iters: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn no_request_breaks_the_server(bytes in vec(any::<u8>(), 0..16000)) {
        fuzz_request(&bytes);
    }

    /// What the server hands out it can take back: after a script that has not forged what it gave back, nothing is held.
    #[test]
    fn nothing_is_handed_out_without_the_guest_knowing(bytes in vec(0u8..245, 0..16000)) {
        let client = Client::new(Arc::new(RamFs::new()));
        client.init();
        run_script(&client, &mut Input::new(&bytes), |_| {}, |_, _| {});
        prop_assert_eq!(client.fs().held(), (0, 0));
    }
}

/// The scripts get somewhere: every request that can succeed does in some of them.
#[test]
fn scripts_reach_every_request() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..300 {
        let bytes = vec(any::<u8>(), 4000).new_tree(&mut runner).unwrap().current();
        let client = Client::new(Arc::new(RamFs::new()));
        client.init();
        run_script(
            &client,
            &mut Input::new(&bytes),
            |_| {},
            |opcode, _| {
                seen.insert(opcode);
            },
        );
    }
    let never: Vec<_> = crate::wire::Opcode::ALL
        .iter()
        .filter(|opcode| opcode.has_reply() && !seen.contains(opcode))
        .collect();
    use crate::wire::Opcode::*;
    assert_eq!(
        never,
        [
            &Init,
            &Bmap,
            &Destroy,
            &Ioctl,
            &Poll,
            &Setupmapping,
            &Removemapping
        ]
    );
}

proptest! {
    #![proptest_config(cases(100))]

    #[test]
    fn nothing_outside_a_share_is_seen_or_touched(bytes in vec(any::<u8>(), 0..16000)) {
        fuzz_session(&bytes);
    }
}

proptest! {
    #![proptest_config(cases(30))]

    #[test]
    fn nor_is_it_with_several_queues(bytes in vec(any::<u8>(), 0..30000)) {
        confinement::session(&bytes, 3);
    }
}
