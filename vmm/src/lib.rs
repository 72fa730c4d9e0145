//! berth's hypervisor: a small VMM on KVM, and the virtio devices it shares with other VMMs over vhost-user.
//!
//! The crate knows nothing of Docker. A device is written once, as a worker that owns its queues ([`virtio::VirtQueue`])
//! and knows neither transport; two thin shells put it behind in-process virtio-mmio or behind vhost-user.

pub mod arch;
pub mod event_loop;
pub mod legacy;
pub mod memory;
pub mod probe;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod vhost_user;
pub mod virtio;
pub mod vm;
