//! The device against a guest that behaves like Linux, and against guests that do not.

mod device;
mod guest;
mod protocol;
mod streams;
