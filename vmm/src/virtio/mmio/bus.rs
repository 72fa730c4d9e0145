//! Finds the device of an address.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::MmioTransport;

/// The virtio-mmio devices of a machine, one after the other at equal distances, shared by all vCPUs.
pub struct MmioBus {
    base: u64,
    stride: u64,
    devices: Vec<Mutex<MmioTransport>>,
}

impl MmioBus {
    /// Devices in order from `base`, each `stride` bytes after the last.
    pub fn new(base: u64, stride: u64, devices: Vec<MmioTransport>) -> MmioBus {
        MmioBus {
            base,
            stride,
            devices: devices.into_iter().map(Mutex::new).collect(),
        }
    }

    /// Reads from `address`. Where no device is, all bits are set.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some((device, offset)) => lock(device).read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes to `address`. Where no device is, nothing happens.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.find(address) {
            lock(device).write(offset, data);
        }
    }

    /// The number of devices.
    pub fn len(&self) -> usize {
        self.devices.len()
    }

    /// Whether there is no device.
    pub fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }

    /// The id of device number `index` (virtio 1.2, 5), if there is one. Waits for a vCPU that is in it.
    pub fn device_id(&self, index: usize) -> Option<u32> {
        Some(lock(self.devices.get(index)?).device_id())
    }

    /// Stops device number `index`; waits for a vCPU that is in it. Returns its id (virtio 1.2, 5).
    pub fn shut_down(&self, index: usize) -> Option<u32> {
        let mut device = lock(self.devices.get(index)?);
        device.shut_down();
        Some(device.device_id())
    }

    fn find(&self, address: u64) -> Option<(&Mutex<MmioTransport>, u64)> {
        let offset = address.checked_sub(self.base)?;
        let device = self.devices.get(usize::try_from(offset / self.stride).ok()?)?;
        Some((device, offset % self.stride))
    }
}

/// A panic in one vCPU's access ends that vCPU and the machine; the others must still be able to stop the device.
fn lock(device: &Mutex<MmioTransport>) -> MutexGuard<'_, MmioTransport> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}
