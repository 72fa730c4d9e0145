//! Log files on the host: written with a bound on their size, read from the end, followed as they grow.

mod follow;
mod rotate;

pub use follow::{Follow, FollowError};
pub use rotate::{RotatingFile, SharedLog};
