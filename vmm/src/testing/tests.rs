//! The bodies of the fuzz targets on some random inputs.

use proptest::{collection::vec, prelude::*};

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

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..4000)
}

proptest! {
    #![proptest_config(cases(40))]

    #[test]
    fn no_guest_breaks_a_disk(bytes in bytes()) {
        fuzz_block(&bytes);
    }

    #[test]
    fn no_guest_breaks_the_network(bytes in bytes()) {
        fuzz_net(&bytes);
    }

    #[test]
    fn no_guest_breaks_the_sockets(bytes in bytes()) {
        fuzz_vsock(&bytes);
    }

    #[test]
    fn no_guest_breaks_the_source_of_random_bytes(bytes in bytes()) {
        fuzz_rng(&bytes);
    }

    #[test]
    fn no_guest_breaks_the_balloon(bytes in bytes()) {
        fuzz_balloon(&bytes);
    }

    #[test]
    fn no_guest_breaks_the_console(bytes in bytes()) {
        fuzz_console(&bytes);
    }

    #[test]
    fn no_guest_breaks_the_registers(bytes in bytes()) {
        fuzz_mmio(&bytes);
    }

    #[test]
    fn no_front_end_breaks_the_server(bytes in bytes()) {
        fuzz_vhost_user(&bytes);
    }
}
