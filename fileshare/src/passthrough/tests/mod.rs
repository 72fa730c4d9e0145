//! The file system on real directories, by the methods the server calls.

mod confinement;
mod directories;
mod files;
mod limits;
mod locks;
mod model;
mod names;
mod nodes;
mod ownership;
mod sharing;
mod support;
mod xattrs;
