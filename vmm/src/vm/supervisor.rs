//! Sees a machine to its end: when vCPUs are to leave, that they do; then that devices stop; then the announcement.

use std::{
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use virtio_bindings::virtio_ids::{
    VIRTIO_ID_BALLOON, VIRTIO_ID_BLOCK, VIRTIO_ID_CONSOLE, VIRTIO_ID_FS, VIRTIO_ID_NET, VIRTIO_ID_RNG,
    VIRTIO_ID_VSOCK,
};

use super::{build::Kept, control::Control, vcpu::Buses};

/// How long vCPUs and devices may take to stop before they are given up. A device's worker finishes the host I/O it is
/// in; on a dead network file system that can take for ever.
const TEARDOWN_LIMIT: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 10 });

/// What is left to take apart when the vCPUs have been told to leave.
pub(super) struct Remains {
    pub(super) vcpus: Vec<JoinHandle<()>>,
    pub(super) buses: Arc<Buses>,
    pub(super) kept: Kept,
}

/// What the teardown is waiting for.
type Progress = Arc<Mutex<String>>;

/// The supervisor's thread.
pub(super) fn supervise(control: &Control, remains: Remains) {
    control.wait_for_end_request();
    let progress = Progress::default();
    let (done, done_rx) = mpsc::channel();
    let reaper_progress = Arc::clone(&progress);
    // On a thread of its own, because what it waits for may never happen.
    let reaper = std::thread::Builder::new()
        .name("vmm-teardown".into())
        .stack_size(super::THREAD_STACK)
        .spawn(move || {
            tear_down(remains, &reaper_progress);
            // Nobody listens any more when this took too long.
            let _ = done.send(());
        });
    let stuck = match reaper {
        Ok(reaper) => match done_rx.recv_timeout(TEARDOWN_LIMIT) {
            Ok(()) => {
                // It has said that it is done; a panic was reported when it happened.
                let _ = reaper.join();
                None
            }
            // It panicked, or it is too slow: either way this is where it is.
            Err(_) => Some(read(&progress)),
        },
        Err(error) => {
            tracing::error!(%error, "no thread for the teardown");
            Some("everything".into())
        }
    };
    control.torn_down(stuck);
}

fn tear_down(remains: Remains, progress: &Progress) {
    let Remains { vcpus, buses, kept } = remains;
    for (index, vcpu) in vcpus.into_iter().enumerate() {
        note(progress, format!("vCPU {index}"));
        // A panic there has already become the exit's reason.
        let _ = vcpu.join();
    }
    note(progress, "the serial console".into());
    if let Err(error) = buses.ports.flush() {
        tracing::warn!(%error, "the serial console's last output is lost");
    }
    for index in 0..buses.mmio.len() {
        let kind = buses.mmio.device_id(index).map_or("none", name);
        note(progress, format!("virtio device {index} ({kind})"));
        buses.mmio.shut_down(index);
    }
    note(progress, "a device that is being dropped".into());
    // The vCPUs' threads held the others.
    drop(buses);
    note(progress, "the devices' event loop".into());
    drop(kept.event_loop);
    note(progress, "KVM".into());
    drop(kept.vm);
    drop(kept.memory);
}

/// What a device of this id is (virtio 1.2, 5).
fn name(device_id: u32) -> &'static str {
    match device_id {
        VIRTIO_ID_NET => "network",
        VIRTIO_ID_BLOCK => "disk",
        VIRTIO_ID_CONSOLE => "console",
        VIRTIO_ID_RNG => "random numbers",
        VIRTIO_ID_BALLOON => "balloon",
        VIRTIO_ID_VSOCK => "sockets",
        VIRTIO_ID_FS => "shared directories",
        _ => "of another kind",
    }
}

fn note(progress: &Progress, what: String) {
    *progress.lock().unwrap_or_else(PoisonError::into_inner) = what;
}

fn read(progress: &Progress) -> String {
    progress.lock().unwrap_or_else(PoisonError::into_inner).clone()
}
