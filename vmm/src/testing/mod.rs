//! What the fuzz targets of this crate run; only in tests and with the feature `testing`.
//!
//! Everything here plays a guest that means harm, or a front end that does. The bodies of the fuzz targets take bytes and make
//! choices of them, so that the same code runs under cargo-fuzz for as long as one likes and under `cargo test` on some random
//! inputs. What may come of it: answers, refusals, DEVICE_NEEDS_RESET. What must not: a panic, a loop without end, an access
//! outside guest memory, or a device that does not work again after a reset.

mod devices;
mod front_end;
mod input;
mod machine;
mod registers;
mod script;

#[cfg(test)]
mod tests;

pub use devices::{fuzz_balloon, fuzz_block, fuzz_console, fuzz_net, fuzz_rng, fuzz_vsock};
pub use front_end::fuzz_vhost_user;
pub use registers::fuzz_mmio;
