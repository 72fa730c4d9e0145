//! The EXEC service: one connection runs one process ([`protocol::exec`]).

mod fd;
mod program;
mod session;

use std::sync::Arc;

use protocol::exec::{ExecReply, ExecRequest};
use protocol::frame::{self, FrameError};

use super::{Stream, hang_up::unless_gone};
use crate::reaper::Reaper;

/// Serves one connection: starts the process, and stays until it has ended and all of its output is sent.
pub(crate) async fn serve(mut stream: impl Stream, reaper: Arc<Reaper>) -> anyhow::Result<()> {
    let request: ExecRequest = match frame::read_async(&mut stream).await {
        // A host that only wanted to see whether we listen.
        Err(FrameError::Closed) => return Ok(()),
        request => request?,
    };
    let session = match session::start(&reaper, &request) {
        Ok(session) => session,
        Err(e) => {
            let reply = ExecReply::Error {
                kind: e.kind(),
                message: e.to_string(),
            };
            return Ok(frame::write_async(&mut stream, &reply).await?);
        }
    };
    let reply = ExecReply::Started { pid: session.pid() };
    // When the host goes away, the process has been told.
    Ok(unless_gone(session.run(stream, &reply).await)?)
}

#[cfg(test)]
mod tests {
    use protocol::exec::{ExecErrorKind, Packet, TerminalSize};
    use tokio::io::AsyncWriteExt;
    use tokio::net::UnixStream;

    use super::*;
    use crate::reaper::tests::running_reaper;

    fn shell(script: &str) -> ExecRequest {
        ExecRequest {
            // bash: dash loses signals that come between its vfork and exec.
            argv: ["/bin/bash", "-c", script].map(str::to_owned).into(),
            env: vec![],
            cwd: Some("/".into()),
            tty: None,
        }
    }

    fn on_terminal(script: &str) -> ExecRequest {
        ExecRequest {
            tty: Some(TerminalSize { rows: 24, cols: 80 }),
            ..shell(script)
        }
    }

    async fn start(request: &ExecRequest) -> (UnixStream, ExecReply) {
        let (mut host, guest) = UnixStream::pair().unwrap();
        let reaper = running_reaper();
        tokio::spawn(async move { serve(guest, reaper).await });
        frame::write_async(&mut host, request).await.unwrap();
        let reply = frame::read_async(&mut host).await.unwrap();
        (host, reply)
    }

    async fn started(request: &ExecRequest) -> UnixStream {
        let (host, reply) = start(request).await;
        assert!(matches!(reply, ExecReply::Started { .. }), "{reply:?}");
        host
    }

    struct Output {
        stdout: String,
        stderr: String,
        exit: i32,
    }

    /// Reads to the exit packet, and checks that it is the last thing said.
    async fn finish(host: &mut UnixStream) -> Output {
        let (mut stdout, mut stderr) = (vec![], vec![]);
        loop {
            match Packet::read(host).await.unwrap().expect("no exit packet") {
                Packet::Stdout(bytes) => stdout.extend(bytes),
                Packet::Stderr(bytes) => stderr.extend(bytes),
                Packet::Exit(exit) => {
                    assert_eq!(Packet::read(host).await.unwrap(), None);
                    return Output {
                        stdout: String::from_utf8(stdout).unwrap(),
                        stderr: String::from_utf8(stderr).unwrap(),
                        exit,
                    };
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// Reads standard output until it contains `text`.
    async fn wait_for(host: &mut UnixStream, text: &str) {
        let mut seen = String::new();
        while !seen.contains(text) {
            match Packet::read(host).await.unwrap().expect("the stream ended") {
                Packet::Stdout(bytes) => seen.push_str(&String::from_utf8_lossy(&bytes)),
                other => panic!("{other:?} after {seen:?}"),
            }
        }
    }

    #[tokio::test]
    async fn streams_are_kept_apart_and_the_exit_code_comes_last() {
        let mut host = started(&shell("echo out; echo err >&2; exit 7")).await;
        let output = finish(&mut host).await;
        assert_eq!(
            (output.stdout.as_str(), output.stderr.as_str(), output.exit),
            ("out\n", "err\n", 7)
        );
    }

    #[tokio::test]
    async fn input_reaches_the_process_and_its_end_too() {
        let mut host = started(&shell("cat; echo done")).await;
        let text = "x".repeat(200_000);
        let (mut read, mut write) = host.split();
        let sending = async {
            for chunk in text.as_bytes().chunks(50_000) {
                Packet::Stdin(chunk.to_vec()).write(&mut write).await.unwrap();
            }
            Packet::StdinEof.write(&mut write).await.unwrap();
        };
        let receiving = async {
            let mut got = Vec::new();
            loop {
                match Packet::read(&mut read).await.unwrap().unwrap() {
                    Packet::Stdout(bytes) => got.extend(bytes),
                    Packet::Exit(code) => return (got, code),
                    other => panic!("{other:?}"),
                }
            }
        };
        let ((), (got, code)) = tokio::join!(sending, receiving);
        assert!(got == format!("{text}done\n").as_bytes());
        assert_eq!(code, 0);
    }

    #[tokio::test]
    async fn all_output_comes_before_the_exit() {
        let mut host = started(&shell("head -c 3000000 /dev/zero | tr '\\0' a; kill -9 $$")).await;
        let output = finish(&mut host).await;
        assert_eq!((output.stdout.len(), output.exit), (3_000_000, 137));
        let mut host = started(&on_terminal("head -c 300000 /dev/zero | tr '\\0' a; exit 3")).await;
        let output = finish(&mut host).await;
        assert_eq!((output.stdout.len(), output.exit), (300_000, 3));
    }

    #[tokio::test]
    async fn a_child_left_in_the_background_does_not_hold_the_exit_up() {
        for request in [
            shell("sleep 1000 & echo $!"),
            on_terminal("trap '' HUP; sleep 1000 & echo $!"),
        ] {
            let output = finish(&mut started(&request).await).await;
            let pid = output.stdout.trim().parse().unwrap();
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            assert_eq!(output.exit, 0);
        }
    }

    #[tokio::test]
    async fn the_terminal_is_a_terminal_of_the_size_asked_for_and_resizes() {
        let mut host = started(&on_terminal(
            "test -t 0 && test -t 1 && test -t 2 && stty size; trap 'stty size; exit 5' WINCH; echo ready; \
             while :; do sleep 0.02; done",
        ))
        .await;
        wait_for(&mut host, "ready").await;
        Packet::Resize(TerminalSize { rows: 50, cols: 132 })
            .write(&mut host)
            .await
            .unwrap();
        let output = finish(&mut host).await;
        assert!(output.stdout.contains("50 132"), "{:?}", output.stdout);
        assert_eq!(output.exit, 5);
        let mut host = started(&on_terminal("stty size")).await;
        assert_eq!(finish(&mut host).await.stdout, "24 80\r\n");
    }

    #[tokio::test]
    async fn the_process_leads_a_session_with_its_terminal() {
        let mut host = started(&on_terminal("ps -o pid=,sid=,tpgid= -p $$; cat </dev/tty")).await;
        Packet::StdinEof.write(&mut host).await.unwrap();
        let output = finish(&mut host).await;
        let first = output.stdout.lines().next().unwrap().to_owned();
        let ids: Vec<&str> = first.split_whitespace().collect();
        assert_eq!(ids.len(), 3, "{first}");
        assert!(ids.iter().all(|id| *id == ids[0]), "{first}");
        assert_eq!(output.exit, 0);
    }

    #[tokio::test]
    async fn control_c_interrupts_on_a_terminal() {
        let mut host = started(&on_terminal("echo ready; sleep 1000")).await;
        wait_for(&mut host, "ready").await;
        Packet::Stdin(vec![3]).write(&mut host).await.unwrap();
        assert_eq!(finish(&mut host).await.exit, 130);
    }

    #[tokio::test]
    async fn signals_go_to_the_whole_group_and_wrong_ones_nowhere() {
        let mut host = started(&shell(
            "trap 'echo caught; exit 9' TERM; echo ready; sleep 1000 & wait",
        ))
        .await;
        wait_for(&mut host, "ready").await;
        for wrong in [0, -1, 65, i32::MAX] {
            Packet::Signal(wrong).write(&mut host).await.unwrap();
        }
        Packet::Signal(15).write(&mut host).await.unwrap();
        let output = finish(&mut host).await;
        assert_eq!((output.stdout.as_str(), output.exit), ("caught\n", 9));
    }

    #[tokio::test]
    async fn a_host_that_leaves_hangs_the_process_up() {
        for terminal in [false, true] {
            let directory = tempfile::tempdir().unwrap();
            let fifo = directory.path().join("told");
            let made = rustix::fs::mknodat(
                rustix::fs::CWD,
                &fifo,
                rustix::fs::FileType::Fifo,
                rustix::fs::Mode::RWXU,
                0,
            );
            made.unwrap();
            // Without standard error, whose pipe is gone as well: bash would report the end of sleep there and get SIGPIPE.
            let script = format!(
                "exec 2>/dev/null; trap 'echo hup >{}; exit' HUP; echo ready; while :; do sleep 0.02; done",
                fifo.display()
            );
            let request = if terminal {
                on_terminal(&script)
            } else {
                shell(&script)
            };
            let mut host = started(&request).await;
            wait_for(&mut host, "ready").await;
            drop(host);
            let told = tokio::task::spawn_blocking(move || std::fs::read_to_string(fifo));
            assert_eq!(told.await.unwrap().unwrap(), "hup\n");
        }
    }

    #[tokio::test]
    async fn what_cannot_be_started_is_told_apart_as_shells_do() {
        let request = |program: &str| ExecRequest {
            argv: vec![program.to_owned()],
            env: vec![],
            cwd: Some("/".into()),
            tty: None,
        };
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("script");
        std::fs::write(&file, "#!/does/not/exist\n").unwrap();
        let plain = file.to_str().unwrap().to_owned();
        let cases = [
            (request("no-such-program"), ExecErrorKind::NotFound),
            (request("/no/such/program"), ExecErrorKind::NotFound),
            (request("/etc/passwd"), ExecErrorKind::NotExecutable),
            (request("/etc"), ExecErrorKind::NotExecutable),
            (request(&plain), ExecErrorKind::NotExecutable),
            (request("nul\0"), ExecErrorKind::Other),
            (
                ExecRequest {
                    cwd: Some("/no/such/directory".into()),
                    ..request("true")
                },
                ExecErrorKind::Other,
            ),
        ];
        for (request, expected) in cases {
            let (_, reply) = start(&request).await;
            let ExecReply::Error { kind, message } = reply else {
                panic!("{request:?} was started")
            };
            assert_eq!(kind, expected, "{message}");
        }
    }

    #[tokio::test]
    async fn the_environment_is_the_guests_own_with_the_requests_on_top() {
        let mut request = shell("echo $PATH:$HOME:$USER:$FOO:$(printenv TERM)");
        request.env = vec![("FOO".into(), "bar".into()), ("HOME".into(), "/h".into())];
        let output = finish(&mut started(&request).await).await;
        assert_eq!(
            output.stdout.trim(),
            format!("{}:/h:root:bar:", crate::tool::PATH)
        );
        request.tty = Some(TerminalSize { rows: 1, cols: 1 });
        let output = finish(&mut started(&request).await).await;
        assert!(output.stdout.contains(":bar:xterm-256color"), "{}", output.stdout);
    }

    #[tokio::test]
    async fn a_request_that_is_none_does_not_hurt() {
        let (mut host, guest) = UnixStream::pair().unwrap();
        host.write_all(&[2, 0, 0, 0, b'{', b'}']).await.unwrap();
        assert!(serve(guest, running_reaper()).await.is_err());
    }
}
