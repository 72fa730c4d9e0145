//! The I/O port space.

use std::sync::{Mutex, PoisonError};

use super::{i8042, serial, serial::Serial};

/// What a vCPU has to do after a write to a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortAction {
    /// Go on.
    Continue,
    /// End the machine: the guest asked for a reset.
    Reset,
}

/// Index and data of the real-time clock's memory.
const CMOS_PORTS: std::ops::RangeInclusive<u16> = 0x70..=0x71;

/// The devices behind I/O ports, shared by all vCPUs.
pub struct Ports {
    serial: Mutex<Serial>,
}

impl Ports {
    /// The port space with this serial port in it.
    pub fn new(serial: Serial) -> Ports {
        Ports {
            serial: Mutex::new(serial),
        }
    }

    /// Reads `data.len()` bytes from `port`: one access of a few bytes, or a string instruction's many. Where nothing
    /// is, all bits are set, as on a bus that nobody drives.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        match port {
            serial::BASE_PORT..=serial::LAST_PORT => {
                let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
                for byte in data {
                    *byte = serial.read((port - serial::BASE_PORT) as u8);
                }
            }
            i8042::DATA_PORT | i8042::COMMAND_PORT => data.fill(i8042::read(port)),
            // No clock: all zero is no valid time, and has no update in progress, which a kernel would wait for.
            port if CMOS_PORTS.contains(&port) => data.fill(0),
            _ => data.fill(0xff),
        }
    }

    /// Writes `data` to `port`, byte by byte. Where nothing is, nothing happens.
    pub fn write(&self, port: u16, data: &[u8]) -> PortAction {
        match port {
            serial::BASE_PORT..=serial::LAST_PORT => {
                let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
                for byte in data {
                    serial.write((port - serial::BASE_PORT) as u8, *byte);
                }
            }
            i8042::DATA_PORT | i8042::COMMAND_PORT
                if data.iter().any(|byte| i8042::write_is_reset(port, *byte)) =>
            {
                return PortAction::Reset;
            }
            _ => {}
        }
        PortAction::Continue
    }

    /// Writes out what the serial port still holds.
    pub fn flush(&self) -> std::io::Result<()> {
        self.serial.lock().unwrap_or_else(PoisonError::into_inner).flush()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;

    fn ports() -> Ports {
        Ports::new(Serial::new(
            EventFd::new(EFD_NONBLOCK).unwrap(),
            Box::new(std::io::sink()),
        ))
    }

    #[test]
    fn nobody_home_reads_as_ones() {
        let mut data = [0; 4];
        ports().read(0xcfc, &mut data);
        assert_eq!(data, [0xff; 4]);
    }

    #[test]
    fn the_reset_line_resets() {
        assert_eq!(ports().write(0x64, &[0xfe]), PortAction::Reset);
        assert_eq!(ports().write(0x80, &[0xfe]), PortAction::Continue);
    }

    #[test]
    fn no_clock_has_no_update_in_progress() {
        let mut data = [0xff];
        ports().read(0x71, &mut data);
        assert_eq!(data, [0]);
    }

    proptest! {
        #[test]
        fn any_access_is_survived(accesses: Vec<(u16, Vec<u8>, bool)>) {
            let ports = ports();
            for (port, mut data, write) in accesses {
                if write {
                    ports.write(port, &data);
                } else {
                    ports.read(port, &mut data);
                }
            }
        }
    }
}
