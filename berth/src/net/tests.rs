//! With a real passt, where there is one.

use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::process::Children;

struct Net {
    dir: tempfile::TempDir,
    children: Arc<Children>,
}

impl Net {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (children, _) = Children::take_over(dir.path().join("children.json")).unwrap();
        Net { dir, children }
    }

    fn config(&self) -> PasstConfig {
        PasstConfig {
            program: std::env::var_os("BERTH_TEST_PASST").map(Into::into),
            socket: self.dir.path().join("net.sock"),
            log: self.dir.path().join("passt.log"),
            mtu: 65520,
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("passt.log")).unwrap_or_default()
    }
}

async fn reach(passt: &Passt, net: &Net, wanted: impl Fn(&NetworkState) -> bool) {
    let mut state = passt.state();
    if tokio::time::timeout(Duration::from_secs(60), state.wait_for(&wanted))
        .await
        .is_err()
    {
        panic!("{:?}; passt said: {}", passt.state().borrow(), net.log());
    }
}

async fn process_of(passt: &Passt, not: Option<u32>) -> u32 {
    let seen = async {
        loop {
            match passt.process_id() {
                Some(pid) if Some(pid) != not => return pid,
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), seen)
        .await
        .expect("passt should have been started")
}

#[tokio::test]
async fn without_passt_the_link_is_there_and_the_state_says_what_to_do() {
    let net = Net::new();
    let config = PasstConfig {
        program: Some("/nonexistent/passt".into()),
        ..net.config()
    };
    let passt = Passt::start(&config, &net.children).await.unwrap();
    let NetworkState::NoPasst(message) = passt.state().borrow().clone() else {
        panic!("{:?}", passt.state().borrow());
    };
    assert!(message.contains("apt install passt"), "{message}");
    StdUnixStream::connect(&config.socket).unwrap();
    passt.stop();
    assert!(!config.socket.exists());
}

#[tokio::test]
async fn a_passt_that_is_killed_is_started_again_and_ends_with_the_network() {
    if find(None).is_err() || !routes::has_network() {
        eprintln!("skipped: there is no passt or no network here");
        return;
    }
    let net = Net::new();
    let passt = Passt::start(&net.config(), &net.children).await.unwrap();
    reach(&passt, &net, |state| *state == NetworkState::Up).await;
    let first = process_of(&passt, None).await;
    let id = crate::process::ProcessId::of(first).unwrap();
    assert!(id.signal(rustix::process::Signal::KILL).unwrap());
    let second = process_of(&passt, Some(first)).await;
    let id = crate::process::ProcessId::of(second).unwrap();
    assert!(passt.exited().borrow().is_none());
    passt.stop();
    assert!(id.wait_ended(Duration::from_secs(60)).unwrap());
}

/// Runs in a network namespace of its own, which begins with nothing but a loopback.
#[test]
fn a_network_that_comes_later_is_used() {
    const INSIDE: &str = "BERTH_TEST_INSIDE_NAMESPACE";
    if find(None).is_err() {
        eprintln!("skipped: there is no passt here");
        return;
    }
    if std::env::var_os(INSIDE).is_none() {
        let output = Command::new("unshare")
            .args(["--user", "--map-root-user", "--net"])
            .arg(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "net::tests::a_network_that_comes_later_is_used",
                "--nocapture",
            ])
            .env(INSIDE, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        if text.contains("unshare:") {
            eprintln!("skipped: no namespaces here: {text}");
            return;
        }
        assert!(output.status.success(), "{text}");
        eprintln!("{text}");
        return;
    }
    let ip = |arguments: &str| {
        let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
        assert!(status.success(), "ip {arguments}");
    };
    ip("link set lo up");
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let net = Net::new();
        let passt = Passt::start(&net.config(), &net.children).await.unwrap();
        reach(&passt, &net, |state| *state == NetworkState::NoHostNetwork).await;
        eprintln!("without a network passt says: {}", net.log());
        StdUnixStream::connect(net.dir.path().join("net.sock")).unwrap();
        ip("link add berth0 type veth peer name berth1");
        ip("link set berth1 up");
        ip("address add 198.51.100.2/24 dev berth0");
        ip("link set berth0 up");
        ip("route add default via 198.51.100.1");
        reach(&passt, &net, |state| *state == NetworkState::Up).await;
        process_of(&passt, None).await;
    });
}
