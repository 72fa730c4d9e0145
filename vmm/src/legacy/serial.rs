//! COM1, an 8250: what a kernel can write to from its first instruction to its panic.

use std::io::{self, Write};

use vm_superio::{Serial as Uart, Trigger, serial::NoEvents};
use vmm_sys_util::eventfd::EventFd;

/// The first of the eight ports.
pub const BASE_PORT: u16 = 0x3f8;
/// The last of them.
pub const LAST_PORT: u16 = BASE_PORT + 7;

/// The serial port. Bytes go out line by line.
pub struct Serial {
    uart: Uart<Line, NoEvents, LineBuffer>,
    /// A failing output is reported once, not per byte.
    failed: bool,
}

/// The interrupt line.
struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;
    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

impl Serial {
    /// A port that raises `interrupt` and writes to `output`. `output` must not block for long: the guest stands still
    /// meanwhile.
    pub fn new(interrupt: EventFd, output: Box<dyn Write + Send>) -> Serial {
        Serial {
            uart: Uart::new(Line(interrupt), LineBuffer::new(output)),
            failed: false,
        }
    }

    /// Reads register `offset` (0 to 7).
    pub fn read(&mut self, offset: u8) -> u8 {
        self.uart.read(offset)
    }

    /// Writes register `offset` (0 to 7).
    pub fn write(&mut self, offset: u8, value: u8) {
        if let Err(error) = self.uart.write(offset, value)
            && !self.failed
        {
            self.failed = true;
            tracing::warn!(%error, "the serial console loses output");
        }
    }

    /// Writes out what has not ended in a newline yet.
    pub fn flush(&mut self) -> io::Result<()> {
        self.uart.writer_mut().write_out()
    }
}

/// Gathers bytes to lines: the port hands over, and flushes, one byte at a time.
struct LineBuffer {
    output: Box<dyn Write + Send>,
    line: Vec<u8>,
}

impl LineBuffer {
    const LONGEST: usize = 256;

    fn new(output: Box<dyn Write + Send>) -> LineBuffer {
        LineBuffer {
            output,
            line: Vec::with_capacity(Self::LONGEST),
        }
    }

    fn write_out(&mut self) -> io::Result<()> {
        let result = self.output.write_all(&self.line);
        self.line.clear();
        result?;
        self.output.flush()
    }
}

impl Write for LineBuffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            self.line.push(*byte);
            if *byte == b'\n' || self.line.len() == Self::LONGEST {
                self.write_out()?;
            }
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<Vec<u8>>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().push(bytes.to_vec());
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn serial(output: Box<dyn Write + Send>) -> Serial {
        Serial::new(EventFd::new(EFD_NONBLOCK).unwrap(), output)
    }

    #[test]
    fn bytes_come_out_as_lines() {
        let written = Shared::default();
        let mut serial = serial(Box::new(written.clone()));
        for byte in b"panic!\nat" {
            serial.write(0, *byte);
        }
        assert_eq!(*written.0.lock().unwrap(), [b"panic!\n".to_vec()]);
        serial.flush().unwrap();
        assert_eq!(*written.0.lock().unwrap(), [b"panic!\n".to_vec(), b"at".to_vec()]);
    }

    #[test]
    fn a_line_without_end_comes_out_in_pieces() {
        let written = Shared::default();
        let mut serial = serial(Box::new(written.clone()));
        for _ in 0..LineBuffer::LONGEST + 1 {
            serial.write(0, b'x');
        }
        assert_eq!(written.0.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_full_disk_does_not_stop_the_guest() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut serial = serial(Box::new(Full));
        for byte in b"a\nb\n" {
            serial.write(0, *byte);
        }
        const LINE_STATUS: u8 = 5;
        assert_ne!(serial.read(LINE_STATUS) & 0x20, 0, "still ready to send");
    }
}
