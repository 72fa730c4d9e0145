//! The keyboard controller, for the one thing a machine without a keyboard needs of it: the reset line.

/// The data port.
pub const DATA_PORT: u16 = 0x60;
/// The command and status port.
pub const COMMAND_PORT: u16 = 0x64;

/// "Pulse output line 0", which is wired to the processor's reset.
const COMMAND_RESET: u8 = 0xfe;

/// What the status port reads as: output buffer full, input buffer empty, for ever.
///
/// A keyboard driver that finds bytes without end gives up at once ("no controller found"), instead of waiting half a
/// second for answers to commands; and the reset path, which waits for the input buffer to be empty, need not wait.
const STATUS: u8 = 0xfd;

/// Reads a port of the controller.
pub fn read(port: u16) -> u8 {
    if port == COMMAND_PORT { STATUS } else { 0xff }
}

/// Writes to a port of the controller. True when the machine is to reset.
pub fn write_is_reset(port: u16, value: u8) -> bool {
    port == COMMAND_PORT && value == COMMAND_RESET
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_reset_command_resets() {
        assert!(write_is_reset(COMMAND_PORT, 0xfe));
        assert!(!write_is_reset(COMMAND_PORT, 0xd1));
        assert!(!write_is_reset(DATA_PORT, 0xfe));
    }

    #[test]
    fn the_status_lets_drivers_give_up_and_resets_through() {
        const OUTPUT_FULL: u8 = 1;
        const INPUT_FULL: u8 = 2;
        assert_eq!(read(COMMAND_PORT) & OUTPUT_FULL, OUTPUT_FULL);
        assert_eq!(read(COMMAND_PORT) & INPUT_FULL, 0);
    }
}
