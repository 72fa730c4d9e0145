//! The front end's requests, carried out on the device.

use std::{
    fs::File,
    io,
    os::fd::{FromRawFd, IntoRawFd},
    sync::Arc,
};

use vhost::{
    VhostUserMemoryRegionBase,
    vhost_user::{
        Error, Result, VhostUserBackendReqHandlerMut, VhostUserProtocolFeatures,
        message::{
            VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
            VhostUserLog, VhostUserMemoryRegion, VhostUserShMemConfig, VhostUserSharedMsg,
            VhostUserSingleMemoryRegion, VhostUserVirtioFeatures, VhostUserVringAddrFlags,
            VhostUserVringState,
        },
    },
};
use virtio_bindings::{
    virtio_config::VIRTIO_F_VERSION_1,
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};
use vmm_sys_util::eventfd::EventFd;

use super::{
    interrupt::CallInterrupt,
    memory::MemoryTable,
    vring::{RingAddresses, Vring},
};
use crate::{
    event_loop::EventLoop,
    virtio::{ActivateError, Activation, Interrupt, VirtioDevice},
};

/// Most regions of guest memory, when they are added one by one. A machine without memory hotplug has a handful.
const MAX_MEMORY_SLOTS: u64 = 64;

/// One device and what its front end has said so far.
pub(super) struct Backend {
    name: String,
    device: Box<dyn VirtioDevice>,
    event_loop: EventLoop,
    memory: MemoryTable,
    vrings: Vec<Vring>,
    interrupt: Arc<CallInterrupt>,
    acked_features: u64,
    /// Which rings the device works on, in order; empty while it does not.
    active: Vec<usize>,
    /// The device was stopped in a way that it may go on from.
    suspended: bool,
    /// Whether the configuration space is offered.
    offers_config: bool,
}

impl Backend {
    pub(super) fn new(
        name: &str,
        device: Box<dyn VirtioDevice>,
        event_loop: EventLoop,
        offers_config: bool,
    ) -> Backend {
        let vrings: Vec<Vring> = device
            .queue_max_sizes()
            .iter()
            .map(|size| Vring::new(*size))
            .collect();
        Backend {
            name: name.to_owned(),
            interrupt: Arc::new(CallInterrupt::new(vrings.len())),
            device,
            event_loop,
            memory: MemoryTable::new(),
            vrings,
            acked_features: 0,
            active: Vec::new(),
            suspended: false,
            offers_config,
        }
    }

    fn features(&self) -> u64 {
        self.device.features()
            | 1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn vring(&mut self, index: impl TryInto<usize>) -> Result<&mut Vring> {
        index
            .try_into()
            .ok()
            .and_then(|index| self.vrings.get_mut(index))
            .ok_or(Error::InvalidOperation("the device has no such ring"))
    }

    /// Starts the device as soon as every ring the front end has set up may run; again, when rings came in later.
    fn update(&mut self) -> Result<()> {
        let configured = self.vrings.iter().filter(|vring| vring.is_configured()).count();
        let ready: Vec<usize> = (0..self.vrings.len())
            .filter(|index| self.vrings[*index].is_ready())
            .collect();
        if ready.len() < configured || ready.is_empty() {
            self.suspend();
            return Ok(());
        }
        if ready == self.active {
            return Ok(());
        }
        self.suspend();
        self.activate(ready)
    }

    fn activate(&mut self, ready: Vec<usize>) -> Result<()> {
        let interrupt: Arc<dyn Interrupt> = Arc::clone(&self.interrupt) as _;
        let event_idx = self.acked_features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let mut queues = Vec::with_capacity(self.vrings.len());
        for (index, vring) in self.vrings.iter_mut().enumerate() {
            queues.push(if ready.contains(&index) {
                let queue = vring
                    .queue(index as u16, event_idx, &self.memory, Arc::clone(&interrupt))
                    .map_err(Error::ReqHandlerError)?;
                Some(queue)
            } else {
                None
            });
        }
        let activated = self.device.activate(Activation {
            features: self.acked_features,
            queues,
            interrupt,
            event_loop: self.event_loop.handle(),
        });
        match activated {
            Ok(()) => {
                tracing::debug!(device = self.name, ?ready, "vhost-user device started");
                self.active = ready;
                self.suspended = false;
                Ok(())
            }
            Err(ActivateError::MissingQueue(queue)) => {
                // The front end sets its rings up one after the other.
                tracing::debug!(device = self.name, queue, "vhost-user device waits for a ring");
                self.settle();
                Ok(())
            }
            Err(error) => {
                self.settle();
                Err(Error::ReqHandlerError(io::Error::other(error)))
            }
        }
    }

    /// Stops the device for good: the driver has reset it or is gone.
    pub(super) fn deactivate(&mut self) {
        if std::mem::take(&mut self.active).is_empty() && !std::mem::take(&mut self.suspended) {
            return;
        }
        self.device.deactivate();
        self.settle();
        tracing::debug!(device = self.name, "vhost-user device stopped");
    }

    /// Stops the device so that it may go on: no ring and no memory is touched when this returns.
    fn suspend(&mut self) {
        if std::mem::take(&mut self.active).is_empty() {
            return;
        }
        self.device.suspend();
        self.suspended = true;
        self.settle();
        tracing::debug!(device = self.name, "vhost-user device suspended");
    }

    fn settle(&mut self) {
        for vring in &mut self.vrings {
            vring.settle();
        }
    }
}

/// The eventfd in a file the front end sent.
fn event(file: File) -> EventFd {
    // SAFETY: the descriptor is owned, and given up by the file. That it is an eventfd is not known, but all that is done with
    // it is reading and writing eight bytes and watching it.
    unsafe { EventFd::from_raw_fd(file.into_raw_fd()) }
}

/// Reading it must not block, whatever the front end made it.
fn non_blocking(file: File) -> Result<File> {
    use std::os::fd::AsRawFd;
    // SAFETY: F_GETFL and F_SETFL on a descriptor that is owned here touch no memory.
    let set = unsafe {
        let flags = libc::fcntl(file.as_raw_fd(), libc::F_GETFL);
        if flags < 0 {
            -1
        } else {
            libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK)
        }
    };
    if set < 0 {
        return Err(Error::ReqHandlerError(io::Error::last_os_error()));
    }
    Ok(file)
}

impl VhostUserBackendReqHandlerMut for Backend {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.deactivate();
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.deactivate();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.features())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        let unknown = features & !self.features();
        if unknown != 0 {
            tracing::warn!(
                device = self.name,
                "the vhost-user front end acknowledged features that were not offered: {unknown:#x}"
            );
            return Err(Error::InvalidOperation(
                "features were acknowledged that were not offered",
            ));
        }
        self.acked_features = features;
        // Without protocol features there is no message that enables a ring.
        if features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
            for vring in &mut self.vrings {
                vring.set_enabled(true);
            }
        }
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        self.memory
            .replace(regions, files)
            .map_err(Error::ReqHandlerError)?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        if self.vring(index)?.set_size(num) {
            Ok(())
        } else {
            Err(Error::InvalidOperation(
                "the ring's size is no power of two, or too large",
            ))
        }
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let translate = |address| {
            self.memory
                .guest_address(address)
                .ok_or(Error::InvalidOperation("the ring is not in guest memory"))
        };
        let addresses = RingAddresses {
            descriptors: translate(descriptor)?,
            available: translate(available)?,
            used: translate(used)?,
        };
        self.vring(index)?.set_addresses(addresses);
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let base =
            u16::try_from(base).map_err(|_| Error::InvalidOperation("the ring's base is out of range"))?;
        self.vring(index)?.set_base(base);
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.vring(index)?;
        self.suspend();
        let base = self.vring(index)?.stop();
        Ok(VhostUserVringState::new(index, u32::from(base)))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        // No descriptor would mean that the device is to poll the ring, which none here does.
        let file = file.ok_or(Error::InvalidOperation("a ring without a kick cannot be served"))?;
        let file = non_blocking(file)?;
        // A device that runs watches the old descriptor.
        self.vring(index)?;
        if self.active.contains(&usize::from(index)) {
            self.suspend();
        }
        self.vring(index)?.set_kick(Some(event(file)));
        self.update()
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        self.vring(index)?;
        self.interrupt.set_call(usize::from(index), file.map(event));
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, file: Option<File>) -> Result<()> {
        self.vring(index)?;
        self.interrupt.set_error(usize::from(index), file.map(event));
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        let mut features = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
        features.set(VhostUserProtocolFeatures::CONFIG, self.offers_config);
        Ok(features)
    }

    fn set_protocol_features(&mut self, _features: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.vrings.len() as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.vring(index)?.set_enabled(enable);
        self.update()
    }

    fn get_config(&mut self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        // The message's own limit has been checked by the caller.
        let mut data = vec![0; size as usize];
        self.device.read_config(u64::from(offset), &mut data);
        Ok(data)
    }

    fn set_config(&mut self, offset: u32, data: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        self.device.write_config(u64::from(offset), data);
        Ok(())
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_MEMORY_SLOTS)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        self.memory.add(region, file).map_err(Error::ReqHandlerError)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        self.memory.remove(region).map_err(Error::ReqHandlerError)
    }

    // What follows belongs to features that are not offered.

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidOperation("shared objects are not offered"))
    }

    fn get_inflight_fd(&mut self, _inflight: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        Err(Error::InvalidOperation("inflight tracking is not offered"))
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        Err(Error::InvalidOperation("inflight tracking is not offered"))
    }

    fn set_gpu_socket(&mut self, _gpu_backend: vhost::vhost_user::GpuBackend) -> Result<()> {
        Err(Error::InvalidOperation("this is not a GPU"))
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Result<Option<File>> {
        Err(Error::InvalidOperation("device state transfer is not offered"))
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("device state transfer is not offered"))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidOperation("shared memory regions are not offered"))
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        Err(Error::InvalidOperation("dirty page logging is not offered"))
    }
}
