//! The server against a file system in memory: what each request needs, and what becomes of requests that are not right.

mod directories;
mod forms;
mod requests;
mod sessions;

use std::sync::Arc;

use crate::filesystem::{FileSystem, Result};
use crate::testing::{Client, RamFs};
use crate::wire::{CreateIn, EntryOut, Opcode, OpenOut, ROOT_ID, Wire};

/// A guest with a session on an empty file system.
fn client() -> Client<RamFs> {
    let client = Client::new(Arc::new(RamFs::new()));
    client.init();
    client
}

/// A structure followed by bytes.
fn with<T: Wire>(arg: &T, bytes: &[u8]) -> Vec<u8> {
    [&arg.to_vec(), bytes].concat()
}

/// CREATE of a file for reading and writing.
fn create<F: FileSystem>(client: &Client<F>, name: &[u8]) -> Result<(EntryOut, OpenOut)> {
    let arg = CreateIn {
        flags: libc::O_RDWR as u32,
        mode: 0o100_666,
        umask: 0o22,
        open_flags: 0,
    };
    let reply = client.call(Opcode::Create, ROOT_ID, &with(&arg, name))?;
    let opened = OpenOut::decode(&reply[EntryOut::SIZE..]).unwrap();
    Ok((EntryOut::decode(&reply).unwrap(), opened))
}
