//! What is on the data disk: nothing, ours, or somebody else's.
//!
//! guest-init makes a file system on a blank disk and on no other. Making one takes a while and may be cut short by a
//! power cut; a half-made file system would look like foreign data for ever. So a mark is written before and removed
//! after ([`MARK`]); a disk that has the mark and no file system that was ever mounted was blank when we began, and is
//! begun again.

use std::io::{self, Read, Seek, SeekFrom};

/// The label of our file system.
pub(super) const LABEL: &str = "berth-data";

/// Says that a file system was being made. A whole block of it, so that no part is there by chance.
pub(super) const MARK: &[u8; 64] = b"berth: a file system is being made on this disk, which was blank";
/// The mark is repeated to fill this many bytes.
pub(super) const MARK_BLOCK: usize = 4096;

/// Smallest disk, in bytes, that is worth a file system; dockerd alone needs more.
pub(super) const MIN_SIZE: u64 = 64 << 20;

const MIB: u64 = 1 << 20;

/// What a disk holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Nothing, in all the places where anything keeps its signature.
    Blank,
    /// A file system we began to make and did not finish.
    Unfinished,
    /// Our file system.
    Ours(Superblock),
    /// Something else, in words.
    Foreign(String),
}

/// The fields of an ext4 superblock that matter here (kernel documentation, ext4, "The Super Block").
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Superblock {
    /// Size of the file system in bytes.
    pub(super) size: u64,
    /// Size of a block in bytes.
    pub(super) block_size: u64,
    /// Neither errors recorded nor left in use without a journal: the kernel can mount it as it is.
    pub(super) clean: bool,
    label: String,
    ever_mounted: bool,
}

/// Offset of the primary superblock in bytes.
const SUPERBLOCK: usize = 1024;
const EXT4_MAGIC: u16 = 0xef53;
/// `s_state`: cleanly unmounted (always set on file systems with a journal).
const STATE_VALID: u16 = 1;
/// `s_state`: errors were detected.
const STATE_ERROR: u16 = 2;
/// `s_feature_incompat`: block numbers have 64 bits.
const INCOMPAT_64BIT: u32 = 0x80;

impl Superblock {
    /// Reads one out of the first bytes of a disk; none when there is none.
    fn parse(disk: &[u8]) -> Option<Superblock> {
        let block = disk.get(SUPERBLOCK..SUPERBLOCK + 1024)?;
        let u16_at = |at: usize| u16::from_le_bytes([block[at], block[at + 1]]);
        let u32_at = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
        if u16_at(0x38) != EXT4_MAGIC {
            return None;
        }
        // 64 KiB is the largest block there is; more is damage.
        let log_block_size = u32_at(0x18);
        if log_block_size > 6 {
            return None;
        }
        let block_size = 1024_u64 << log_block_size;
        let high = if u32_at(0x60) & INCOMPAT_64BIT != 0 {
            u32_at(0x150)
        } else {
            0
        };
        let blocks = u64::from(high) << 32 | u64::from(u32_at(0x4));
        let state = u16_at(0x3a);
        let label = &block[0x78..0x88];
        let label = label.split(|&b| b == 0).next().unwrap_or_default();
        Some(Superblock {
            size: blocks.checked_mul(block_size)?,
            block_size,
            clean: state & STATE_VALID != 0 && state & STATE_ERROR == 0,
            label: String::from_utf8_lossy(label).into_owned(),
            ever_mounted: u32_at(0x2c) != 0,
        })
    }
}

/// Where the mark goes: far from everything mke2fs writes or clears (the first groups, the last 128 KiB).
pub(super) fn mark_offset(size: u64) -> u64 {
    size.saturating_sub(2 * MIB) / MARK_BLOCK as u64 * MARK_BLOCK as u64
}

/// The mark as it is on disk.
pub(super) fn mark_block() -> Vec<u8> {
    MARK.repeat(MARK_BLOCK / MARK.len())
}

/// Looks at a disk of `size` bytes.
pub(super) fn examine(disk: &mut (impl Read + Seek), size: u64) -> io::Result<Content> {
    let head = read_at(disk, 0, MIB.min(size))?;
    let superblock = Superblock::parse(&head);
    let ours = superblock.filter(|s| s.label == LABEL);
    if let Some(superblock) = ours.clone().filter(|s| s.ever_mounted) {
        return Ok(Content::Ours(superblock));
    }
    if read_at(disk, mark_offset(size), MARK_BLOCK as u64)? == mark_block() {
        return Ok(Content::Unfinished);
    }
    if let Some(superblock) = ours {
        return Ok(Content::Ours(superblock));
    }
    for (offset, length) in signature_places(size) {
        let bytes = read_at(disk, offset, length)?;
        if let Some(at) = bytes.iter().position(|&b| b != 0) {
            let what = name_of(&head).map_or_else(
                || format!("unknown data at byte {}", offset + at as u64),
                str::to_owned,
            );
            return Ok(Content::Foreign(what));
        }
    }
    Ok(Content::Blank)
}

/// Where file systems, partition tables, RAID, LVM and encryption keep their headers and the copies of them.
fn signature_places(size: u64) -> impl Iterator<Item = (u64, u64)> {
    const COPY: u64 = 64 * 1024;
    let copies = [
        // LUKS2's second header, at 16 KiB to 4 MiB (the first MiB is covered).
        2 * MIB,
        4 * MIB,
        // ext4's first copy with blocks of 1 KiB and of 4 KiB; btrfs' first copy.
        8 * MIB,
        64 * MIB,
        128 * MIB,
    ];
    // GPT's copy, md's superblock and ZFS' labels are at the end.
    let end = (size.saturating_sub(MIB), MIB.min(size));
    let head = (0, MIB.min(size));
    let copies = copies
        .into_iter()
        .filter(move |&at| at < size)
        .map(move |at| (at, COPY.min(size - at)));
    [head, end].into_iter().chain(copies)
}

/// What the first mebibyte of a disk shows, for the message.
fn name_of(head: &[u8]) -> Option<&'static str> {
    const SIGNATURES: &[(usize, &[u8], &str)] = &[
        (512, b"EFI PART", "a partition table (GPT)"),
        (0, b"XFSB", "an XFS file system"),
        (0x10040, b"_BHRfS_M", "a btrfs file system"),
        (0, b"LUKS\xba\xbe", "an encrypted volume (LUKS)"),
        (0, b"hsqs", "a squashfs file system"),
        (1024, b"\xe2\xe1\xf5\xe0", "an erofs file system"),
        (1024, b"\x10\x20\xf5\xf2", "an F2FS file system"),
        (4086, b"SWAPSPACE2", "swap space"),
        (512, b"LABELONE", "an LVM volume"),
        (0x8001, b"CD001", "a CD image"),
        (0, b"QFI\xfb", "a qcow2 disk image (berth's disks are raw)"),
        (3, b"NTFS", "an NTFS file system"),
        (1080, b"\x53\xef", "an ext file system that berth did not make"),
        (510, b"\x55\xaa", "a partition table or boot sector"),
    ];
    let found = SIGNATURES
        .iter()
        .find(|(at, magic, _)| head.get(*at..at + magic.len()) == Some(*magic));
    found.map(|(_, _, name)| *name)
}

fn read_at(disk: &mut (impl Read + Seek), offset: u64, length: u64) -> io::Result<Vec<u8>> {
    disk.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    disk.take(length).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::process::Command;

    use super::*;

    pub(in crate::data_disk) const SIZE: u64 = 256 * MIB;

    pub(in crate::data_disk) fn blank() -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(SIZE).unwrap();
        file
    }

    fn content_of(mut file: &File) -> Content {
        examine(&mut file, SIZE).unwrap()
    }

    /// A superblock as mke2fs leaves it, with the mount time given.
    pub(in crate::data_disk) fn superblock(label: &str, mount_time: u32, state: u16) -> Vec<u8> {
        let mut block = vec![0; 1024];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x4, &65536_u32.to_le_bytes());
        put(0x18, &2_u32.to_le_bytes());
        put(0x2c, &mount_time.to_le_bytes());
        put(0x38, &EXT4_MAGIC.to_le_bytes());
        put(0x3a, &state.to_le_bytes());
        put(0x78, label.as_bytes());
        block
    }

    #[test]
    fn zeroes_are_blank() {
        assert_eq!(content_of(&blank()), Content::Blank);
    }

    #[test]
    fn one_byte_in_a_place_where_signatures_are_makes_a_disk_foreign() {
        for (offset, length) in signature_places(SIZE) {
            for at in [offset, offset + length - 1] {
                let disk = blank();
                disk.write_all_at(&[1], at).unwrap();
                assert_eq!(
                    content_of(&disk),
                    Content::Foreign(format!("unknown data at byte {at}"))
                );
            }
        }
    }

    #[test]
    fn well_known_contents_are_named() {
        let disk = blank();
        disk.write_all_at(b"EFI PART", 512).unwrap();
        assert_eq!(
            content_of(&disk),
            Content::Foreign("a partition table (GPT)".into())
        );
        let disk = blank();
        disk.write_all_at(&superblock("debian", 1, 1), 1024).unwrap();
        assert_eq!(
            content_of(&disk),
            Content::Foreign("an ext file system that berth did not make".into())
        );
    }

    #[test]
    fn our_file_system_is_known_by_its_label() {
        let disk = blank();
        disk.write_all_at(&superblock(LABEL, 1, 1), 1024).unwrap();
        let Content::Ours(found) = content_of(&disk) else {
            panic!("not recognised")
        };
        assert_eq!((found.size, found.block_size, found.clean), (SIZE, 4096, true));
    }

    #[test]
    fn errors_in_the_state_ask_for_a_check() {
        for (state, clean) in [(1, true), (0, false), (3, false), (5, true)] {
            let disk = blank();
            disk.write_all_at(&superblock(LABEL, 1, state), 1024).unwrap();
            let Content::Ours(found) = content_of(&disk) else {
                panic!("not recognised")
            };
            assert_eq!(found.clean, clean, "state {state}");
        }
    }

    #[test]
    fn the_mark_counts_until_the_file_system_was_mounted() {
        let disk = blank();
        disk.write_all_at(&mark_block(), mark_offset(SIZE)).unwrap();
        assert_eq!(content_of(&disk), Content::Unfinished);
        disk.write_all_at(&[7; 4096], 4096).unwrap();
        assert_eq!(content_of(&disk), Content::Unfinished);
        disk.write_all_at(&superblock(LABEL, 0, 1), 1024).unwrap();
        assert_eq!(content_of(&disk), Content::Unfinished);
        disk.write_all_at(&superblock(LABEL, 1, 1), 1024).unwrap();
        assert!(matches!(content_of(&disk), Content::Ours(_)));
    }

    #[test]
    fn a_damaged_primary_superblock_does_not_make_a_disk_blank() {
        let disk = blank();
        // The copy of the superblock in group 1, all that is left.
        disk.write_all_at(&superblock(LABEL, 1, 1), 128 * MIB).unwrap();
        assert!(matches!(content_of(&disk), Content::Foreign(_)));
    }

    #[test]
    fn nonsense_sizes_in_a_superblock_are_no_superblock() {
        let mut block = superblock(LABEL, 1, 1);
        block[0x18..0x1c].copy_from_slice(&u32::MAX.to_le_bytes());
        let disk = blank();
        disk.write_all_at(&block, 1024).unwrap();
        assert!(matches!(content_of(&disk), Content::Foreign(_)));
    }

    #[test]
    fn what_mke2fs_makes_is_ours_and_leaves_the_mark_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        let disk = File::options()
            .create_new(true)
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        disk.set_len(SIZE).unwrap();
        disk.write_all_at(&mark_block(), mark_offset(SIZE)).unwrap();
        let args = crate::data_disk::mkfs_arguments(path.to_str().unwrap());
        let made = Command::new("/sbin/mkfs.ext4").args(args).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        assert_eq!(content_of(&disk), Content::Unfinished);
        disk.write_all_at(&[0; MARK_BLOCK], mark_offset(SIZE)).unwrap();
        let Content::Ours(found) = content_of(&disk) else {
            panic!("not recognised")
        };
        assert_eq!((found.size, found.clean), (SIZE, true));
    }
}
