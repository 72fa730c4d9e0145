//! Memory that a running machine lends back to the host: the machine starts with the most that it may ever have, and what
//! it is not to have now is in its balloon.

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use vmm::virtio::balloon::BALLOON_PAGE;

use super::EngineError;
use crate::size::Size;

/// The balloon of a running machine, in pages of [`BALLOON_PAGE`] bytes.
pub trait Balloon: Send + Sync {
    /// Sets how much the guest is to hand over. It does so in its own time, as far as it can, and says how far it is by
    /// [`Balloon::actual`]. Also before the guest has a driver for it.
    fn set_target(&self, pages: u32) -> BoxFuture<'_, Result<(), EngineError>>;

    /// How much the guest says it has handed over, now and whenever that changes. The guest's word: any number.
    fn actual(&self) -> watch::Receiver<u32>;
}

/// How many pages this is, rounded down.
pub fn pages(size: Size) -> u32 {
    u32::try_from(size.bytes() / BALLOON_PAGE).unwrap_or(u32::MAX)
}

/// How much these pages are.
pub fn size(pages: u32) -> Size {
    Size::from_bytes(u64::from(pages) * BALLOON_PAGE)
}
