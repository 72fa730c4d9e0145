//! Real boots, where there is a QEMU and a guest kernel (`BERTH_TEST_KERNEL`, an uncompressed `vmlinux`).

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::*;
use crate::engine::{ConsoleSink, DiskSpec, EngineExit, NetSpec};
use crate::process::Children;

/// Every QEMU to be tested: the one in `PATH`, and those `BERTH_TEST_QEMU` names, separated by colons.
fn programs() -> Vec<QemuProgram> {
    let named = std::env::var_os("BERTH_TEST_QEMU").unwrap_or_default();
    let mut programs: Vec<_> = std::env::split_paths(&named)
        .filter(|path| !path.as_os_str().is_empty())
        .map(|path| find(Some(&path)).unwrap())
        .collect();
    programs.extend(find(None));
    programs
}

fn kernel() -> Option<PathBuf> {
    let kernel = std::env::var_os("BERTH_TEST_KERNEL").map(PathBuf::from);
    if kernel.is_none() {
        eprintln!("skipped: BERTH_TEST_KERNEL names no guest kernel");
    }
    kernel
}

#[derive(Clone, Default)]
struct Console(Arc<Mutex<Vec<u8>>>);

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Console {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

struct Guest {
    dir: tempfile::TempDir,
    console: Console,
}

impl Guest {
    fn new() -> Self {
        Guest {
            dir: tempfile::tempdir().unwrap(),
            console: Console::default(),
        }
    }

    fn disk(&self, name: &str, megabytes: u64, read_only: bool) -> DiskSpec {
        let path = self.dir.path().join(name);
        fs::File::create(&path).unwrap().set_len(megabytes << 20).unwrap();
        DiskSpec {
            path,
            read_only,
            serial: name.to_owned(),
        }
    }

    fn spec(&self, kernel: &Path) -> MachineSpec {
        let console = self.console.clone();
        let (vsock, _host) = vmm::virtio::vsock::vsock(protocol::ports::GUEST_CID.into()).unwrap();
        let (children, _) = Children::take_over(self.dir.path().join("children.json")).unwrap();
        MachineSpec {
            name: "test, with a comma".into(),
            kernel: kernel.to_owned(),
            // There is nothing to boot on the disks: the kernel says what it has found, panics, and that ends the machine.
            cmdline: "earlycon=uart8250,io,0x3f8 console=hvc0 panic=-1 reboot=k,t root=/dev/vda rootfstype=erofs ro".into(),
            cpus: 2,
            memory_mib: 256,
            disks: vec![self.disk("first", 1, true), self.disk("second,x", 2, false)],
            net: None,
            vsock: Box::new(vsock),
            fs: None,
            console: ConsoleSink::new(move || Box::new(console.clone())),
            runtime_dir: self.dir.path().to_owned(),
            children,
        }
    }
}

async fn end_of(running: &dyn RunningEngine) -> EngineExit {
    let mut exited = running.exited();
    let exit = tokio::time::timeout(Duration::from_secs(120), exited.wait_for(Option::is_some))
        .await
        .expect("the machine should have ended");
    exit.unwrap().clone().unwrap()
}

#[tokio::test]
async fn disks_have_their_names_in_the_order_given_and_a_panic_ends_the_machine() {
    let Some(kernel) = kernel() else { return };
    for program in programs() {
        let guest = Guest::new();
        let engine = QemuEngine::new(program.clone());
        let running = engine.start(guest.spec(&kernel)).await.unwrap();
        assert_eq!(running.describe().accelerator, "tcg");
        assert_eq!(
            end_of(&*running).await,
            EngineExit::GuestReset,
            "{}",
            guest.console.text()
        );
        let console = guest.console.text();
        for line in ["[vda] 2048 512-byte", "[vdb] 4096 512-byte", "Kernel panic"] {
            assert!(console.contains(line), "{program:?}: no {line:?} in {console}");
        }
    }
}

#[tokio::test]
async fn a_machine_can_be_paused_resumed_and_killed() {
    let Some(kernel) = kernel() else { return };
    for program in programs() {
        let guest = Guest::new();
        let mut spec = guest.spec(&kernel);
        spec.cmdline = spec.cmdline.replace("panic=-1", "panic=0");
        let running = QemuEngine::new(program).start(spec).await.unwrap();
        for _ in 0..2 {
            running.pause().await.unwrap();
            running.pause().await.unwrap();
            running.resume().await.unwrap();
            running.resume().await.unwrap();
        }
        assert!(running.exited().borrow().is_none());
        running.pause().await.unwrap();
        running.kill();
        running.kill();
        assert_eq!(end_of(&*running).await, EngineExit::Killed(None));
        assert!(running.pause().await.is_err());
    }
}

#[tokio::test]
async fn dropping_the_machine_or_its_start_leaves_nothing_running() {
    let Some(kernel) = kernel() else { return };
    let Some(program) = programs().pop() else { return };
    let guest = Guest::new();
    let spec = guest.spec(&kernel);
    let children = Arc::clone(&spec.children);
    let running = QemuEngine::new(program.clone()).start(spec).await.unwrap();
    let mut exited = running.exited();
    drop(running);
    let exit = exited.wait_for(Option::is_some).await.unwrap().clone();
    assert_eq!(exit, Some(EngineExit::Killed(None)));

    let engine = QemuEngine::new(program);
    drop(tokio::time::timeout(Duration::ZERO, engine.start(guest.spec(&kernel))).await);
    drop(children);
    let record = guest.dir.path().join("children.json");
    let empty = async {
        // The record is written by the threads that wait for the children.
        while !fs::read_to_string(&record).unwrap().contains("\"children\":[]") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), empty)
        .await
        .expect("a QEMU was left");
}

#[tokio::test]
async fn what_qemu_says_when_it_cannot_start_is_passed_on() {
    for program in programs() {
        let guest = Guest::new();
        let kernel = guest.dir.path().join("no kernel");
        fs::write(&kernel, "not a kernel").unwrap();
        let error = match QemuEngine::new(program).start(guest.spec(&kernel)).await {
            Err(error) => error,
            Ok(_) => panic!("QEMU should have refused the kernel"),
        };
        let text = crate::exit::chain(&error.into());
        assert!(
            text.contains("ended at once") && text.contains("kernel"),
            "{text}"
        );
    }
}

/// A root file system with busybox and this `/sbin/init`; none where the tools for it are missing.
fn root_with_init(guest: &Guest, script: &str) -> Option<DiskSpec> {
    use std::os::unix::fs::PermissionsExt;
    let busybox = ["/usr/bin/busybox", "/bin/busybox"]
        .map(Path::new)
        .into_iter()
        .find(|path| path.exists())?;
    let root = guest.dir.path().join("root");
    for dir in ["bin", "sbin", "proc", "dev", "mnt"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::copy(busybox, root.join("bin/busybox")).unwrap();
    let init = root.join("sbin/init");
    fs::write(&init, format!("#!/bin/busybox sh\nset -x\n{script}\n")).unwrap();
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).unwrap();
    let image = guest.dir.path().join("root.erofs");
    let made = std::process::Command::new("mkfs.erofs")
        .arg(&image)
        .arg(&root)
        .output()
        .ok()?;
    assert!(made.status.success(), "{made:?}");
    Some(DiskSpec {
        path: image,
        read_only: true,
        serial: "berth-root".into(),
    })
}

#[tokio::test]
async fn a_shared_directory_is_the_same_on_both_sides() {
    use fileshare::passthrough::{Passthrough, PassthroughConfig, ShareConfig};
    use fileshare::server::Server;
    use fileshare_virtio::{VirtioFs, VirtioFsConfig};

    let Some(kernel) = kernel() else { return };
    for program in programs() {
        let guest = Guest::new();
        let share = guest.dir.path().join("share");
        fs::create_dir(&share).unwrap();
        fs::write(share.join("from host"), "what the host says\n").unwrap();
        let script = "B=/bin/busybox
             $B mount -t virtiofs a,tag /mnt
             $B cat '/mnt/from host'
             $B mkdir /mnt/dir
             echo what the guest says > /mnt/dir/file
             $B mv /mnt/dir/file '/mnt/from guest'
             $B sync
             $B reboot -f";
        let Some(root) = root_with_init(&guest, script) else {
            eprintln!("skipped: there is no busybox or mkfs.erofs here");
            return;
        };
        let passthrough =
            Passthrough::single(ShareConfig::new(&share), PassthroughConfig::default()).unwrap();
        let config = VirtioFsConfig {
            tag: "a,tag".into(),
            // One more than the guest has use for.
            request_queues: 3,
            threads_per_queue: 2,
        };
        let device = VirtioFs::new(config, Arc::new(Server::new(Arc::new(passthrough)))).unwrap();
        let mut spec = guest.spec(&kernel);
        spec.disks[0] = root;
        spec.fs = Some(Box::new(device));
        let running = QemuEngine::new(program).start(spec).await.unwrap();
        assert_eq!(end_of(&*running).await, EngineExit::GuestReset);
        let console = guest.console.text();
        assert!(console.contains("what the host says"), "{console}");
        let written = fs::read_to_string(share.join("from guest")).unwrap_or_default();
        assert_eq!(written, "what the guest says\n", "{console}");
        assert!(share.join("dir").is_dir());
    }
}

/// The guest reaches a server on the host's loopback through the gateway's address, and does so again after passt was
/// killed in between, over the same network device.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_guest_reaches_the_host_through_passt_also_after_it_was_killed() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use crate::net::{GUEST_MAC, NetworkState, Passt, PasstConfig};

    let Some(kernel) = kernel() else { return };
    for program in programs() {
        let guest = Guest::new();
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = server.local_addr().unwrap().port();
        let script = format!(
            "B=/bin/busybox
             $B ip link set lo up; $B ip link set eth0 up; $B ip address add 192.168.127.2/24 dev eth0
             $B ip route add default via 192.168.127.1
             for part in one two; do
               until $B wget -q -O - http://192.168.127.1:{port}/$part; do $B sleep 1; done
             done
             $B nslookup example.com 192.168.127.3
             $B reboot -f"
        );
        let Some(root) = root_with_init(&guest, &script) else {
            eprintln!("skipped: there is no busybox or mkfs.erofs here");
            return;
        };
        let mut spec = guest.spec(&kernel);
        spec.disks[0] = root;
        let config = PasstConfig {
            program: std::env::var_os("BERTH_TEST_PASST").map(Into::into),
            socket: guest.dir.path().join("net.sock"),
            log: guest.dir.path().join("passt.log"),
            mtu: 65520,
        };
        let passt = Passt::start(&config, &spec.children).await.unwrap();
        if *passt.state().borrow() != NetworkState::Up {
            eprintln!("skipped: {}", *passt.state().borrow());
            return;
        }
        spec.net = Some(NetSpec {
            mac: GUEST_MAC,
            passt_socket: config.socket.clone(),
        });
        let running = QemuEngine::new(program).start(spec).await.unwrap();
        let serve = async {
            for part in ["one", "two"] {
                loop {
                    let (mut stream, _) = server.accept().await.unwrap();
                    let mut request = vec![0; 4096];
                    let length = stream.read(&mut request).await.unwrap_or(0);
                    if !request[..length].starts_with(format!("GET /{part} ").as_bytes()) {
                        continue;
                    }
                    let answer = format!("HTTP/1.0 200 OK\r\n\r\npart {part} of the answer\n");
                    stream.write_all(answer.as_bytes()).await.unwrap();
                    stream.shutdown().await.unwrap();
                    // Until the guest has closed its end.
                    let _ = stream.read(&mut request).await;
                    break;
                }
                if part == "one" {
                    let passt = crate::process::ProcessId::of(passt.process_id().unwrap()).unwrap();
                    assert!(passt.signal(rustix::process::Signal::KILL).unwrap());
                }
            }
        };
        let served = tokio::time::timeout(Duration::from_secs(120), serve).await;
        let passt_log = fs::read_to_string(&config.log).unwrap_or_default();
        assert!(served.is_ok(), "{}\npasst: {passt_log}", guest.console.text());
        assert_eq!(end_of(&*running).await, EngineExit::GuestReset);
        let console = guest.console.text();
        eprintln!("{}", &console[console.find("sbin/init").unwrap_or(0)..]);
        for part in ["one", "two"] {
            assert!(
                console.contains(&format!("part {part} of the answer")),
                "{console}"
            );
        }
    }
}
