//! The end of the machine: containers and dockerd stopped, everything else killed, the data disk synced and unmounted,
//! the host told, power off.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use protocol::boot::GuestEvent;
use rustix::fs::sync;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount_remount, unmount};
use rustix::process::Signal;
use rustix::system::{RebootCommand, reboot};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use crate::console::{error, notice, warning};
use crate::data_disk::{BINDS, MOUNT_POINT};
use crate::docker::Docker;
use crate::host_link::Events;
use crate::reaper::Reaper;

/// What containers and dockerd get when whoever ends the machine does not say.
pub(crate) const DEFAULT_GRACE: Duration = Duration::from_secs(20);
/// What other processes get between SIGTERM and SIGKILL, at most.
const TERM_GRACE: Duration = Duration::from_secs(2);
/// How long killed processes may take to be gone.
const KILL_WAIT: Duration = Duration::from_secs(5);
/// How much longer than its grace a shutdown may take before it is cut short: a disk that answers no more must not keep
/// the machine for ever.
const OVERTIME: Duration = Duration::from_secs(60);

/// The way to ask for the end of the machine.
#[derive(Debug, Clone)]
pub(crate) struct Shutdown(mpsc::UnboundedSender<Cause>);

/// Requests to end the machine.
#[derive(Debug)]
pub(crate) struct ShutdownRequests(mpsc::UnboundedReceiver<Cause>);

/// Why the machine ends, and how.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Cause {
    /// For the console.
    pub(crate) why: String,
    /// How long containers and dockerd get.
    pub(crate) grace: Duration,
}

impl Shutdown {
    /// The two ends of the channel.
    pub(crate) fn new() -> (Shutdown, ShutdownRequests) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Shutdown(sender), ShutdownRequests(receiver))
    }

    /// Asks for an orderly shutdown. Only the first request counts.
    pub(crate) fn request(&self, why: impl Into<String>, grace: Duration) {
        let why = why.into();
        // Fails only when the machine is ending already.
        let _ = self.0.send(Cause { why, grace });
    }

    /// Turns the signals by which an init is told to end the machine into requests: SIGTERM, SIGPWR, and SIGINT, which
    /// the kernel sends for Ctrl-Alt-Del once that does not restart the machine at once.
    pub(crate) fn obey_signals(&self) -> std::io::Result<()> {
        if let Err(e) = reboot(RebootCommand::CadOff) {
            warning!("cannot take Ctrl-Alt-Del over: {e}");
        }
        for (name, kind) in [
            ("SIGTERM", SignalKind::terminate()),
            ("SIGINT", SignalKind::interrupt()),
            ("SIGPWR", SignalKind::from_raw(libc::SIGPWR)),
        ] {
            let mut signals = signal(kind)?;
            let shutdown = self.clone();
            tokio::spawn(async move {
                if signals.recv().await.is_some() {
                    shutdown.request(format!("guest-init got {name}"), DEFAULT_GRACE);
                }
            });
        }
        Ok(())
    }
}

impl ShutdownRequests {
    /// Waits for the first request.
    pub(crate) async fn next(&mut self) -> Cause {
        match self.0.recv().await {
            Some(cause) => cause,
            // Nobody is left who could ask.
            None => std::future::pending().await,
        }
    }
}

/// Ends everything in order, up to the power-off itself.
pub(crate) async fn run(cause: Cause, docker: Arc<Docker>, reaper: Arc<Reaper>, events: Events) {
    let begun = Instant::now();
    notice!("shutting down: {}", cause.why);
    power_off_after(cause.grace + OVERTIME);
    events.send(GuestEvent::ShuttingDown);
    docker.stop(cause.grace).await;
    end_processes(&reaper).await;
    // Disks may take long; the reaper and the link to the host go on meanwhile.
    if tokio::task::spawn_blocking(leave_data_disk).await.is_err() {
        error!("leaving the data disk failed, the disk is only synced");
        sync();
    }
    notice!("powering off after {} ms", begun.elapsed().as_millis());
    events.send(GuestEvent::PoweringOff);
    events.flush().await;
}

/// Ends the machine. Without ACPI nothing can switch it off: the guest restarts, and what runs it takes that for the end
/// (the keyboard controller's reset line with our own hypervisor, `-no-reboot` with QEMU).
pub(crate) fn power_off() -> ! {
    sync();
    loop {
        if let Err(e) = reboot(RebootCommand::Restart) {
            error!("cannot power off: {e}");
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Powers off after a time whatever else happens.
fn power_off_after(time: Duration) {
    let watchdog = std::thread::Builder::new().stack_size(64 * 1024).spawn(move || {
        std::thread::sleep(time);
        error!(
            "the shutdown takes over {} seconds, powering off now",
            time.as_secs()
        );
        // No sync: it is most likely what takes so long.
        let _ = reboot(RebootCommand::Restart);
    });
    if let Err(e) = watchdog {
        warning!("cannot start the shutdown's watchdog: {e}");
    }
}

/// Ends all processes but this one: asked first, then killed.
async fn end_processes(reaper: &Arc<Reaper>) {
    // SIGHUP is what shells end on, and SIGCONT lets stopped processes hear the others.
    for signal in [Signal::TERM, Signal::HUP, Signal::CONT] {
        signal_everyone(signal);
    }
    if all_gone(reaper, TERM_GRACE).await {
        return;
    }
    signal_everyone(Signal::KILL);
    if !all_gone(reaper, KILL_WAIT).await {
        warning!("some processes do not die");
    }
}

fn signal_everyone(signal: Signal) {
    // SAFETY: kill takes two numbers; -1 means every process but this one when this is PID 1.
    let sent = unsafe { libc::kill(-1, signal.as_raw()) };
    if sent != 0 {
        let e = std::io::Error::last_os_error();
        if e.raw_os_error() != Some(libc::ESRCH) {
            warning!("cannot send signal {} to all processes: {e}", signal.as_raw());
        }
    }
}

/// Waits until there are no processes left. All that lose their parent become ours, so none are left when we have none.
async fn all_gone(reaper: &Arc<Reaper>, limit: Duration) -> bool {
    let mut deaths = reaper.deaths();
    let gone = async {
        while !reaper.is_childless() {
            if deaths.changed().await.is_err() {
                return;
            }
        }
    };
    timeout(limit, gone).await.is_ok()
}

/// Syncs and unmounts the data disk and all that is on it; what cannot be unmounted is at least made read-only.
fn leave_data_disk() {
    sync();
    let mounts = match fs::read_to_string("/proc/self/mountinfo") {
        Ok(mounts) => mounts,
        Err(e) => return error!("cannot list the mounts, the data disk is only synced: {e}"),
    };
    for target in on_data_disk(&mounts) {
        match unmount(&target, UnmountFlags::NOFOLLOW) {
            // Invalid: it went together with another one that it was a copy of.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(Errno::BUSY) => {
                if target != MOUNT_POINT {
                    // The disk below is made read-only in any case.
                    let _ = unmount(&target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
                    continue;
                }
                match mount_remount(Path::new(MOUNT_POINT), MountFlags::RDONLY, c"") {
                    Ok(()) => notice!("the data disk is in use; it was made read-only instead of unmounted"),
                    Err(e) => warning!("the data disk can neither be unmounted nor made read-only: {e}"),
                }
            }
            Err(e) => warning!("cannot unmount {target}: {e}"),
        }
    }
    sync();
}

/// The mount points to leave, in an order in which each may be unmounted: the data disk, where its parts are bound, and
/// what is mounted below those (containers' file systems); the last mounted first.
fn on_data_disk(mountinfo: &str) -> Vec<String> {
    let roots: Vec<&str> = std::iter::once(MOUNT_POINT)
        .chain(BINDS.iter().map(|bind| bind.1))
        .collect();
    let mut targets: Vec<String> = mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(unescape)
        .filter(|target| roots.iter().any(|root| Path::new(target).starts_with(root)))
        .collect();
    targets.reverse();
    targets
}

/// Undoes the octal escapes of mount points (proc_pid_mountinfo(5)): space, tab, newline, backslash.
fn unescape(path: &str) -> String {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    escapes.iter().fold(path.to_owned(), |path, (escape, character)| {
        path.replace(escape, character)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_left_in_the_reverse_order_of_their_making() {
        let mountinfo = "\
22 1 0:20 / /proc rw - proc proc rw
30 1 254:16 / /var/lib/berth rw,noatime shared:1 - ext4 /dev/vdb rw,discard
31 1 254:16 /docker /var/lib/docker rw,noatime shared:1 - ext4 /dev/vdb rw
32 1 254:16 /log /var/log rw,noatime shared:1 - ext4 /dev/vdb rw
40 31 0:50 / /var/lib/docker/overlay2/a\\040b/merged rw - overlay overlay rw
41 1 0:51 / /var/logistics rw - tmpfs tmpfs rw
";
        assert_eq!(
            on_data_disk(mountinfo),
            [
                "/var/lib/docker/overlay2/a b/merged",
                "/var/log",
                "/var/lib/docker",
                "/var/lib/berth"
            ]
        );
    }

    #[tokio::test]
    async fn the_first_request_is_the_one_obeyed() {
        let (shutdown, mut requests) = Shutdown::new();
        shutdown.request("one", Duration::from_secs(1));
        shutdown.request("two", Duration::from_secs(2));
        let expected = Cause {
            why: "one".into(),
            grace: Duration::from_secs(1),
        };
        assert_eq!(requests.next().await, expected);
    }
}
