//! Console device (virtio 1.2, 5.3) with one port: hvc0 of a Linux guest.
//!
//! A Linux guest writes to this console with interrupts off and spins until the device has taken the bytes. So they are
//! taken at once, whatever the reader on the host does: a thread of the console's own passes them on, and what it cannot
//! pass on in time is dropped and replaced by a note of how much is missing.

mod input;
mod output;
mod worker;

use std::{io, io::Write, sync::Arc};

use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;

pub use self::input::ConsoleInput;
use self::{output::Output, worker::Worker};
use super::{ActivateError, Activation, VirtioDevice, serve::RunningWorker};

const QUEUE_SIZE: u16 = 64;
const RECEIVE_QUEUE: u16 = 0;
const TRANSMIT_QUEUE: u16 = 1;

/// VIRTIO_CONSOLE_F_EMERG_WRITE (5.3.3): a byte written to the configuration space is printed, without any queue.
const F_EMERG_WRITE: u64 = 1 << 2;
/// Where `emerg_wr` lies in the configuration space (5.3.4).
const EMERG_WRITE_OFFSET: u64 = 8;

/// The console device.
pub struct Console {
    output: Arc<Output>,
    input: ConsoleInput,
    running: Option<RunningWorker>,
}

/// Makes a console that prints to `output`, which may block, and takes what is typed from [`ConsoleInput`].
pub fn console(output: Box<dyn Write + Send>) -> io::Result<(Console, ConsoleInput)> {
    let input = ConsoleInput::new()?;
    let console = Console {
        output: Arc::new(Output::spawn(output)?),
        input: input.clone(),
        running: None,
    };
    Ok((console, input))
}

impl VirtioDevice for Console {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE, QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        F_EMERG_WRITE
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        // No size, one port.
        data.fill(0);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if offset == EMERG_WRITE_OFFSET
            && let Some(byte) = data.first()
        {
            self.output.push(&[*byte]);
        }
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let receive = activation.require_queue(RECEIVE_QUEUE)?;
        let transmit = activation.require_queue(TRANSMIT_QUEUE)?;
        let worker = Worker::new(receive, transmit, self.input.clone(), Arc::clone(&self.output));
        self.running = Some(RunningWorker::start(activation.event_loop, Box::new(worker))?);
        Ok(())
    }

    fn deactivate(&mut self) {
        self.running = None;
    }
}

#[cfg(test)]
mod tests;
