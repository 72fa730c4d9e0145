//! The register block of a device (virtio 1.2, 4.2.2, table 4.1). Little-endian, 32 bits each.

/// Reads as "virt".
pub const MAGIC_VALUE: u64 = 0x000;
/// The version of the register layout: 2.
pub const VERSION: u64 = 0x004;
/// The device id.
pub const DEVICE_ID: u64 = 0x008;
/// The vendor id.
pub const VENDOR_ID: u64 = 0x00c;
/// 32 of the device's features, as selected.
pub const DEVICE_FEATURES: u64 = 0x010;
/// Selects which 32.
pub const DEVICE_FEATURES_SEL: u64 = 0x014;
/// 32 of the features the driver accepts, as selected.
pub const DRIVER_FEATURES: u64 = 0x020;
/// Selects which 32.
pub const DRIVER_FEATURES_SEL: u64 = 0x024;
/// Selects the queue that the queue registers are about.
pub const QUEUE_SEL: u64 = 0x030;
/// The most entries the queue can have; 0: no such queue.
pub const QUEUE_SIZE_MAX: u64 = 0x034;
/// The number of entries the driver chose.
pub const QUEUE_SIZE: u64 = 0x038;
/// 1 when the queue is set up.
pub const QUEUE_READY: u64 = 0x044;
/// Written with a queue's index: there are buffers.
pub const QUEUE_NOTIFY: u64 = 0x050;
/// Why the device interrupted.
pub const INTERRUPT_STATUS: u64 = 0x060;
/// Written with the causes that were dealt with.
pub const INTERRUPT_ACK: u64 = 0x064;
/// The device status; writing 0 resets.
pub const STATUS: u64 = 0x070;
/// The address of the descriptor table, low half.
pub const QUEUE_DESC_LOW: u64 = 0x080;
/// High half.
pub const QUEUE_DESC_HIGH: u64 = 0x084;
/// The address of the available ring ("driver area"), low half.
pub const QUEUE_DRIVER_LOW: u64 = 0x090;
/// High half.
pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
/// The address of the used ring ("device area"), low half.
pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
/// High half.
pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
/// The size and address of the selected shared memory region: four registers from here, all ones for none.
pub const SHM_LEN_LOW: u64 = 0x0b0;
/// The last of the four.
pub const SHM_BASE_HIGH: u64 = 0x0bc;
/// Changes when the configuration space does.
pub const CONFIG_GENERATION: u64 = 0x0fc;
/// The configuration space begins here.
pub const CONFIG: u64 = 0x100;

/// What [`MAGIC_VALUE`] reads as.
pub const MAGIC: u32 = u32::from_le_bytes(*b"virt");
/// What [`VERSION`] reads as: the layout since virtio 1.0.
pub const LAYOUT_VERSION: u32 = 2;
/// What [`VENDOR_ID`] reads as.
pub const VENDOR: u32 = u32::from_le_bytes(*b"brth");

/// Device status bits (virtio 1.2, 2.1).
pub mod status {
    /// The guest has seen the device.
    pub const ACKNOWLEDGE: u32 = 1;
    /// The guest has a driver for it.
    pub const DRIVER: u32 = 2;
    /// The driver is ready.
    pub const DRIVER_OK: u32 = 4;
    /// Both sides agree on the features.
    pub const FEATURES_OK: u32 = 8;
    /// The device cannot go on without a reset.
    pub const DEVICE_NEEDS_RESET: u32 = 64;
    /// The driver has given up.
    pub const FAILED: u32 = 128;
}
