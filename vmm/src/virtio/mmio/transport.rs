//! The registers of one device, and the status state machine behind them (virtio 1.2, 2.1, 3.1.1 and 4.2.2).

use std::{io, sync::Arc};

use virtio_bindings::{
    virtio_config::VIRTIO_F_VERSION_1,
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{
    MmioInterrupt,
    queue_setup::{QueueSetup, QueueSetupError},
    registers::{self as reg, status},
};
use crate::{
    event_loop::EventLoopHandle,
    memory::GuestRam,
    virtio::{ActivateError, Activation, Interrupt, InterruptCause, VirtQueue, VirtioDevice},
};

/// The features the transport and the queues provide for every device.
const TRANSPORT_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// A way to have kicks reach a device without a round through [`MmioTransport::write`].
pub trait Doorbells: Send {
    /// From now on, writing `queue` to the QueueNotify register may write to `kick` instead.
    fn connect(&self, queue: u16, kick: &EventFd) -> io::Result<()>;
    /// Ends that.
    fn disconnect(&self, queue: u16, kick: &EventFd) -> io::Result<()>;
}

/// Why a device did not start when the driver said DRIVER_OK.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("the driver set up queue {index} wrongly")]
    Queue {
        index: usize,
        #[source]
        source: QueueSetupError,
    },
    #[error("a notification could not be set up")]
    Doorbell(#[source] io::Error),
    #[error(transparent)]
    Device(#[from] ActivateError),
}

/// One virtio device behind its registers.
pub struct MmioTransport {
    device: Box<dyn VirtioDevice>,
    memory: GuestRam,
    event_loop: EventLoopHandle,
    doorbells: Box<dyn Doorbells>,
    interrupt: Arc<MmioInterrupt>,
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    queues: Vec<QueueSetup>,
    /// Of the queues in use: index and kick. Not empty only between DRIVER_OK and reset.
    kicks: Vec<(u16, EventFd)>,
    /// Queues the driver kicked before it set DRIVER_OK. It must not, some do.
    early_kicks: Vec<u16>,
    active: bool,
}

impl MmioTransport {
    /// Puts a device behind registers.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestRam,
        event_loop: EventLoopHandle,
        doorbells: Box<dyn Doorbells>,
        interrupt: Arc<MmioInterrupt>,
    ) -> MmioTransport {
        let queues = initial_queues(&*device);
        MmioTransport {
            device,
            memory,
            event_loop,
            doorbells,
            interrupt,
            status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
            queues,
            kicks: Vec::new(),
            early_kicks: Vec::new(),
            active: false,
        }
    }

    /// The device's id (virtio 1.2, 5).
    pub fn device_id(&self) -> u32 {
        self.device.device_id()
    }

    /// Reads `data.len()` bytes at `offset` in the device's registers. Anything but an aligned 32-bit read of a
    /// register, or a read of the configuration space, reads as zero.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(reg::CONFIG) {
            self.device.read_config(offset, data);
            return;
        }
        data.fill(0);
        if let Ok(word) = <&mut [u8; 4]>::try_from(data) {
            *word = self.read_register(offset).to_le_bytes();
        }
    }

    /// Writes `data` at `offset` in the device's registers. Anything but an aligned 32-bit write of a register, or a
    /// write to the configuration space, is ignored.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(reg::CONFIG) {
            self.device.write_config(offset, data);
        } else if let Ok(word) = <[u8; 4]>::try_from(data) {
            self.write_register(offset, u32::from_le_bytes(word));
        }
    }

    /// Stops the device, as a reset does. For the machine's end.
    pub fn shut_down(&mut self) {
        self.reset();
    }

    fn read_register(&self, offset: u64) -> u32 {
        match offset {
            reg::MAGIC_VALUE => reg::MAGIC,
            reg::VERSION => reg::LAYOUT_VERSION,
            reg::DEVICE_ID => self.device.device_id(),
            reg::VENDOR_ID => reg::VENDOR,
            reg::DEVICE_FEATURES => match self.device_features_sel {
                0 => self.offered() as u32,
                1 => (self.offered() >> 32) as u32,
                _ => 0,
            },
            reg::QUEUE_SIZE_MAX => self.selected_max_size().map_or(0, u32::from),
            reg::QUEUE_READY => self
                .selected_queue()
                .map_or(0, |queue| u32::from(self.queues[queue].ready)),
            reg::INTERRUPT_STATUS => self.interrupt.status(),
            reg::STATUS => {
                let needs_reset = if self.interrupt.needs_reset() {
                    status::DEVICE_NEEDS_RESET
                } else {
                    0
                };
                self.status | needs_reset
            }
            // No shared memory: a length and an address of all ones.
            reg::SHM_LEN_LOW..=reg::SHM_BASE_HIGH if offset.is_multiple_of(4) => u32::MAX,
            reg::CONFIG_GENERATION => self.interrupt.generation(),
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            reg::DEVICE_FEATURES_SEL => self.device_features_sel = value,
            reg::DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            reg::DRIVER_FEATURES => self.set_driver_features(value),
            reg::QUEUE_SEL => self.queue_sel = value,
            reg::QUEUE_READY => self.set_queue_ready(value),
            reg::QUEUE_NOTIFY => self.notify(value),
            reg::INTERRUPT_ACK => self.interrupt.acknowledge(value),
            reg::STATUS => self.set_status(value),
            reg::QUEUE_SIZE => self.set_up_queue(|queue| queue.size = value),
            reg::QUEUE_DESC_LOW => self.set_up_queue(|queue| set_low(&mut queue.desc, value)),
            reg::QUEUE_DESC_HIGH => self.set_up_queue(|queue| set_high(&mut queue.desc, value)),
            reg::QUEUE_DRIVER_LOW => self.set_up_queue(|queue| set_low(&mut queue.driver, value)),
            reg::QUEUE_DRIVER_HIGH => self.set_up_queue(|queue| set_high(&mut queue.driver, value)),
            reg::QUEUE_DEVICE_LOW => self.set_up_queue(|queue| set_low(&mut queue.device, value)),
            reg::QUEUE_DEVICE_HIGH => self.set_up_queue(|queue| set_high(&mut queue.device, value)),
            _ => {}
        }
    }

    fn offered(&self) -> u64 {
        self.device.features() | TRANSPORT_FEATURES
    }

    fn selected_queue(&self) -> Option<usize> {
        usize::try_from(self.queue_sel)
            .ok()
            .filter(|queue| *queue < self.queues.len())
    }

    fn selected_max_size(&self) -> Option<u16> {
        self.device.queue_max_sizes().get(self.selected_queue()?).copied()
    }

    fn set_driver_features(&mut self, value: u32) {
        // 2.2: negotiated features do not change after FEATURES_OK.
        if self.status & (status::DRIVER | status::FEATURES_OK) != status::DRIVER {
            return;
        }
        match self.driver_features_sel {
            0 => set_low(&mut self.driver_features, value),
            1 => set_high(&mut self.driver_features, value),
            // There are no such features; accepting one is a mistake that FEATURES_OK would have to report.
            _ => {}
        }
    }

    /// Changes the selected queue, if its setup may be changed (4.2.2.2: not while it is ready).
    fn set_up_queue(&mut self, change: impl FnOnce(&mut QueueSetup)) {
        if self.active {
            return;
        }
        if let Some(queue) = self.selected_queue()
            && !self.queues[queue].ready
        {
            change(&mut self.queues[queue]);
        }
    }

    fn set_queue_ready(&mut self, value: u32) {
        // A single queue of a running device cannot be stopped: that is VIRTIO_F_RING_RESET, which is not offered.
        if let Some(queue) = self.selected_queue()
            && !self.active
            && self.status & status::FEATURES_OK != 0
        {
            self.queues[queue].ready = value == 1;
        }
    }

    fn notify(&mut self, value: u32) {
        let Ok(index) = u16::try_from(value) else { return };
        if !self.active {
            if usize::from(index) < self.queues.len() && !self.early_kicks.contains(&index) {
                self.early_kicks.push(index);
            }
            return;
        }
        if let Some((_, kick)) = self.kicks.iter().find(|(queue, _)| *queue == index)
            && let Err(error) = kick.write(1)
        {
            tracing::error!(device = self.device.device_id(), queue = index, %error, "a kick was lost");
        }
    }

    fn set_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        // 2.1.1: the driver must not clear a bit but by a reset. What the device sets is not the driver's to set.
        let known =
            status::ACKNOWLEDGE | status::DRIVER | status::DRIVER_OK | status::FEATURES_OK | status::FAILED;
        let new = value & known & !self.status;
        self.status |= new & (status::ACKNOWLEDGE | status::FAILED);
        if new & status::DRIVER != 0 && self.status & status::ACKNOWLEDGE != 0 {
            self.status |= status::DRIVER;
        }
        if new & status::FEATURES_OK != 0 && self.status & status::DRIVER != 0 && self.features_acceptable() {
            self.status |= status::FEATURES_OK;
        }
        if new & status::DRIVER_OK != 0
            && self.status & status::FEATURES_OK != 0
            && self.status & status::FAILED == 0
        {
            self.status |= status::DRIVER_OK;
            self.start();
        }
    }

    fn features_acceptable(&self) -> bool {
        let wanted = self.driver_features;
        let unknown = wanted & !self.offered();
        let acceptable = unknown == 0 && wanted & 1 << VIRTIO_F_VERSION_1 != 0;
        if !acceptable {
            tracing::warn!(
                device = self.device.device_id(),
                wanted = format_args!("{wanted:#x}"),
                offered = format_args!("{:#x}", self.offered()),
                "the guest's driver asks for features that are not offered, or predates virtio 1.0"
            );
        }
        acceptable
    }

    fn start(&mut self) {
        if let Err(error) = self.try_start() {
            self.disconnect();
            tracing::error!(
                device = self.device.device_id(),
                error = &error as &(dyn std::error::Error + 'static),
                "a device could not be started"
            );
            if let Err(error) = self.interrupt.signal(InterruptCause::NeedsReset) {
                tracing::error!(device = self.device.device_id(), %error, "the driver could not be told");
            }
        }
    }

    fn try_start(&mut self) -> Result<(), StartError> {
        let event_idx = self.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let memory = self.memory.memory();
        let interrupt: Arc<dyn Interrupt> = self.interrupt.clone();
        let mut queues = Vec::with_capacity(self.queues.len());
        let max_sizes = self.device.queue_max_sizes();
        for (index, (setup, max)) in self.queues.iter().zip(max_sizes).enumerate() {
            if !setup.ready {
                queues.push(None);
                continue;
            }
            let queue = setup
                .check(*max, event_idx, &memory)
                .map_err(|source| StartError::Queue { index, source })?;
            let kick = EventFd::new(EFD_NONBLOCK).map_err(StartError::Doorbell)?;
            // Devices have few queues.
            let index = index as u16;
            self.doorbells
                .connect(index, &kick)
                .map_err(StartError::Doorbell)?;
            let device_kick = kick.try_clone();
            self.kicks.push((index, kick));
            let device_kick = device_kick.map_err(StartError::Doorbell)?;
            if self.early_kicks.contains(&index) {
                device_kick.write(1).map_err(StartError::Doorbell)?;
            }
            queues.push(Some(VirtQueue::new(
                index,
                queue,
                self.memory.clone(),
                device_kick,
                Arc::clone(&interrupt),
            )));
        }
        self.device.activate(Activation {
            features: self.driver_features,
            queues,
            interrupt,
            event_loop: self.event_loop.clone(),
        })?;
        self.active = true;
        Ok(())
    }

    fn reset(&mut self) {
        self.disconnect();
        if self.active {
            self.device.deactivate();
            self.active = false;
        }
        self.interrupt.reset();
        self.status = 0;
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.driver_features = 0;
        self.queue_sel = 0;
        self.queues = initial_queues(&*self.device);
        self.early_kicks.clear();
    }

    fn disconnect(&mut self) {
        for (queue, kick) in self.kicks.drain(..) {
            if let Err(error) = self.doorbells.disconnect(queue, &kick) {
                tracing::error!(device = self.device.device_id(), queue, %error, "a notification could not be ended");
            }
        }
    }
}

fn initial_queues(device: &dyn VirtioDevice) -> Vec<QueueSetup> {
    device
        .queue_max_sizes()
        .iter()
        .map(|max| QueueSetup {
            size: u32::from(*max),
            ..Default::default()
        })
        .collect()
}

fn set_low(whole: &mut u64, half: u32) {
    *whole = *whole & !0xffff_ffff | u64::from(half);
}

fn set_high(whole: &mut u64, half: u32) {
    *whole = *whole & 0xffff_ffff | u64::from(half) << 32;
}
