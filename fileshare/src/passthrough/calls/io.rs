//! Data: reading, writing, and what else happens inside of files.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use rustix::fs::{FallocateFlags, SeekFrom};

use super::super::Passthrough;
use crate::buffers::{ReplyBuffer, RequestBuffer};
use crate::filesystem::{Context, Errno, Handle, NodeId, Result};

impl Passthrough {
    pub(super) fn read_file(
        &self,
        node: NodeId,
        handle: Handle,
        offset: u64,
        size: u32,
        into: &mut dyn ReplyBuffer,
    ) -> Result<usize> {
        let file = self.file(node, handle, false)?;
        let size = size as usize;
        check_range(offset, size as u64)?;
        let mut done = 0;
        while done < size {
            match into.read_from(file.as_fd(), offset + done as u64, size - done) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                // What has been read is read; the error comes back with the next request.
                Err(_) if done > 0 => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(done)
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn write_file(
        &self,
        node: NodeId,
        handle: Handle,
        offset: u64,
        size: u32,
        from: &mut dyn RequestBuffer,
        append: bool,
        kill_suidgid: bool,
    ) -> Result<usize> {
        let file = self.file(node, handle, true)?;
        let size = size as usize;
        check_range(offset, size as u64)?;
        file.written.store(true, Ordering::Relaxed);
        self.drop_privileges(&file.node, file.as_fd(), kill_suidgid)?;
        let mut done = 0;
        while done < size {
            match from.write_to(file.as_fd(), offset + done as u64, size - done, append) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) if done > 0 => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(done)
    }

    pub(super) fn seek_file(&self, node: NodeId, handle: Handle, offset: u64, whence: u32) -> Result<u64> {
        let file = self.file(node, handle, false)?;
        let to = match whence as i32 {
            libc::SEEK_DATA => SeekFrom::Data(offset),
            libc::SEEK_HOLE => SeekFrom::Hole(offset),
            // The rest is the guest kernel's own.
            _ => return Err(Errno(libc::EINVAL)),
        };
        // Moves the offset of the description, which nothing of ours uses.
        Ok(rustix::fs::seek(&*file, to)?)
    }

    pub(super) fn allocate(
        &self,
        ctx: &Context,
        node: NodeId,
        handle: Handle,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> Result<()> {
        let file = self.file(node, handle, true)?;
        check_range(offset, length)?;
        // The request does not say whether privileges go with it: for everybody but root.
        self.drop_privileges(&file.node, file.as_fd(), ctx.uid != 0)?;
        let mode = FallocateFlags::from_bits_retain(mode);
        Ok(rustix::fs::fallocate(&*file, mode, offset, length)?)
    }

    pub(super) fn copy_range(
        &self,
        ctx: &Context,
        from: (NodeId, Handle, u64),
        to: (NodeId, Handle, u64),
        length: u64,
        flags: u64,
    ) -> Result<usize> {
        if flags != 0 {
            return Err(Errno(libc::EINVAL));
        }
        let source = self.file(from.0, from.1, false)?;
        let target = self.file(to.0, to.1, true)?;
        // The answer has 32 bits; the guest's kernel asks again for the rest.
        let length = length.min(1 << 30);
        check_range(from.2, length)?;
        check_range(to.2, length)?;
        target.written.store(true, Ordering::Relaxed);
        self.drop_privileges(&target.node, target.as_fd(), ctx.uid != 0)?;
        let (mut read_at, mut write_at) = (from.2, to.2);
        let length = length as usize;
        Ok(rustix::fs::copy_file_range(
            &*source,
            Some(&mut read_at),
            &*target,
            Some(&mut write_at),
            length,
        )?)
    }
}

/// EFBIG or EINVAL for what is beyond the longest file there is.
fn check_range(offset: u64, length: u64) -> Result<()> {
    match offset.checked_add(length) {
        Some(end) if end <= i64::MAX as u64 => Ok(()),
        _ if offset > i64::MAX as u64 => Err(Errno(libc::EINVAL)),
        _ => Err(Errno(libc::EFBIG)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_end_where_files_do() {
        assert_eq!(check_range(0, i64::MAX as u64), Ok(()));
        assert_eq!(check_range(1, i64::MAX as u64), Err(Errno(libc::EFBIG)));
        assert_eq!(check_range(1 << 63, 0), Err(Errno(libc::EINVAL)));
        assert_eq!(check_range(u64::MAX, 1), Err(Errno(libc::EINVAL)));
    }
}
