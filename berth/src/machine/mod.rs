//! A machine: its files, its settings, its life from start to stop.

/// The largest packet on a machine's network, in bytes: the most that passt and virtio-net take, for the fewest packets.
pub const MTU: u32 = 65520;

pub mod bring_up;
mod clock;
pub mod console;
pub mod control;
pub mod disk;
mod docker_settings;
pub mod events;
pub mod failure;
mod guest_clock;
pub mod guest_files;
pub mod handle;
pub mod link;
mod live;
mod names;
pub mod record;
pub mod resources;
pub mod settings;
pub mod shares;
pub mod state;
pub mod supervisor;
pub mod switch;
mod take_down;
