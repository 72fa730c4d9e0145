//! Puts a kernel, its initrd, its command line and the zero page into guest memory.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use linux_loader::loader::{Elf, KernelLoader, bootparam, elf::Error as ElfError};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion};

use super::layout;
use crate::memory::{GuestRegions, total_size};

/// Why a guest could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file cannot be read.
    #[error("{} cannot be read", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel file is something else.
    #[error(
        "{} is not a kernel this machine can start: it must be an uncompressed x86-64 vmlinux (ELF), not a bzImage",
        path.display()
    )]
    NotElf {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: linux_loader::loader::Error,
    },
    /// The kernel file's contents cannot be loaded.
    #[error("the kernel {} is truncated or damaged, or does not fit in {memory_mib} MiB of memory", path.display())]
    Load {
        /// Which file.
        path: PathBuf,
        /// The guest's memory.
        memory_mib: u64,
        /// What failed.
        #[source]
        source: linux_loader::loader::Error,
    },
    /// The kernel's entry point is not in the kernel.
    #[error("the kernel {} is damaged: its entry point {entry:#x} lies outside of it", path.display())]
    Entry {
        /// Which file.
        path: PathBuf,
        /// What it says.
        entry: u64,
    },
    /// Kernel and initrd need more memory than there is.
    #[error("the kernel and the initrd do not fit in {memory_mib} MiB of memory; give the machine more")]
    NoRoom {
        /// The guest's memory.
        memory_mib: u64,
    },
    /// The command line is too long.
    #[error("the kernel command line is {length} bytes long; a kernel takes {} at most", layout::COMMAND_LINE_MAX - 1)]
    CommandLineTooLong {
        /// Its length, with the devices.
        length: usize,
    },
    /// The command line has something in it that a kernel cannot take.
    #[error("the kernel command line must not contain control characters")]
    CommandLineCharacters,
    /// Guest memory refused.
    #[error("guest memory could not be written")]
    Memory(#[from] GuestMemoryError),
}

/// Loads the kernel. Returns where it is entered and where it ends.
pub fn load_kernel(memory: &GuestRegions, path: &Path) -> Result<(GuestAddress, u64), BootError> {
    use linux_loader::loader::Error as LoaderError;
    let mut file = open(path)?;
    // Segments are read straight into guest memory: the file never is in the host's.
    let loaded =
        Elf::load(memory, None, &mut file, Some(layout::KERNEL_START)).map_err(|source| match &source {
            LoaderError::Elf(
                ElfError::InvalidElfMagicNumber
                | ElfError::BigEndianElfOnLittle
                | ElfError::InvalidProgramHeaderSize
                | ElfError::InvalidProgramHeaderOffset,
            ) => BootError::NotElf {
                path: path.to_owned(),
                source,
            },
            _ => BootError::Load {
                path: path.to_owned(),
                memory_mib: total_size(memory) >> 20,
                source,
            },
        })?;
    let entry = loaded.kernel_load;
    if entry.0 >= loaded.kernel_end {
        return Err(BootError::Entry {
            path: path.to_owned(),
            entry: entry.0,
        });
    }
    Ok((entry, loaded.kernel_end))
}

/// Loads the initrd as high as the kernel looks for it. Returns its address and size.
pub fn load_initrd(
    memory: &GuestRegions,
    path: &Path,
    kernel_end: u64,
) -> Result<(GuestAddress, u64), BootError> {
    let mut file = open(path)?;
    let size = file
        .metadata()
        .map_err(|source| BootError::Open {
            path: path.to_owned(),
            source,
        })?
        .len();
    let no_room = || BootError::NoRoom {
        memory_mib: total_size(memory) >> 20,
    };
    let end = low_ram_end(memory).min(layout::INITRD_END_MAX);
    let start = end.checked_sub(size).ok_or_else(no_room)? & !0xfff;
    if start < kernel_end {
        return Err(no_room());
    }
    let address = GuestAddress(start);
    memory.read_exact_volatile_from(address, &mut file, size as usize)?;
    Ok((address, size))
}

/// The caller's command line with the devices put where the kernel, not its init, reads them.
pub fn command_line(given: &str, devices: &[(u64, u32)]) -> Result<String, BootError> {
    if given.chars().any(char::is_control) {
        return Err(BootError::CommandLineCharacters);
    }
    let (kernel, init) = match given.split_once(" -- ") {
        Some((kernel, init)) => (kernel, Some(init)),
        None => (given, None),
    };
    let mut line = kernel.trim().to_owned();
    for (base, irq) in devices {
        let size = layout::MMIO_STRIDE / 1024;
        line.push_str(&format!(" virtio_mmio.device={size}K@{base:#x}:{irq}"));
    }
    if let Some(init) = init {
        line.push_str(" -- ");
        line.push_str(init);
    }
    if line.len() >= layout::COMMAND_LINE_MAX {
        return Err(BootError::CommandLineTooLong { length: line.len() });
    }
    Ok(line)
}

/// Writes the command line and the zero page.
pub fn write_parameters(
    memory: &GuestRegions,
    command_line: &str,
    initrd: Option<(GuestAddress, u64)>,
) -> Result<(), BootError> {
    let mut line = Vec::from(command_line);
    line.push(0);
    memory.write_slice(&line, layout::COMMAND_LINE)?;

    let mut zero_page = bootparam::boot_params::default();
    zero_page.hdr.boot_flag = 0xaa55;
    zero_page.hdr.header = u32::from_le_bytes(*b"HdrS");
    zero_page.hdr.version = 0x20c;
    zero_page.hdr.type_of_loader = 0xff;
    zero_page.hdr.loadflags = 1; // loaded high
    zero_page.hdr.kernel_alignment = 0x100_0000;
    // All below 4 GiB by layout.
    zero_page.hdr.cmd_line_ptr = layout::COMMAND_LINE.0 as u32;
    zero_page.hdr.cmdline_size = command_line.len() as u32;
    if let Some((address, size)) = initrd {
        zero_page.hdr.ramdisk_image = address.0 as u32;
        zero_page.hdr.ramdisk_size = size as u32;
    }
    let map = e820(memory);
    for (slot, entry) in zero_page.e820_table.iter_mut().zip(&map) {
        *slot = *entry;
    }
    zero_page.e820_entries = map.len() as u8;
    memory.write_obj(zero_page, layout::ZERO_PAGE)?;
    Ok(())
}

/// The memory map: base RAM, the first MiB's upper part kept for what a PC has there, RAM around the hole.
fn e820(memory: &GuestRegions) -> Vec<bootparam::boot_e820_entry> {
    const RAM: u32 = 1;
    const RESERVED: u32 = 2;
    let entry = |addr, end: u64, kind| bootparam::boot_e820_entry {
        addr,
        size: end - addr,
        r#type: kind,
    };
    let kernel_start = layout::KERNEL_START.0;
    let mut map = vec![
        entry(0, layout::BASE_RAM_END, RAM),
        entry(layout::BASE_RAM_END, kernel_start, RESERVED),
        entry(kernel_start, low_ram_end(memory), RAM),
    ];
    map.extend(
        memory
            .iter()
            .skip(1)
            .map(|region| entry(region.start_addr().0, region.start_addr().0 + region.len(), RAM)),
    );
    map
}

fn low_ram_end(memory: &GuestRegions) -> u64 {
    memory.iter().next().map_or(0, GuestMemoryRegion::len)
}

fn open(path: &Path) -> Result<File, BootError> {
    File::open(path).map_err(|source| BootError::Open {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::fs::FileExt};

    use linux_loader::elf;
    use proptest::prelude::*;

    use super::*;

    const ENTRY: u64 = 0x100_0000;

    fn memory(mib: u64) -> GuestRegions {
        crate::memory::allocate(&layout::ram_ranges(mib)).unwrap()
    }

    /// An ELF file with one segment of `code` at [`ENTRY`].
    fn kernel(code: &[u8]) -> Vec<u8> {
        let header = elf::Elf64_Ehdr {
            e_ident: [0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            e_type: 2,
            e_machine: 62,
            e_version: 1,
            e_entry: ENTRY,
            e_phoff: 64,
            e_ehsize: 64,
            e_phentsize: 56,
            e_phnum: 1,
            ..Default::default()
        };
        let segment = elf::Elf64_Phdr {
            p_type: 1,
            p_flags: 7,
            p_offset: 120,
            p_vaddr: ENTRY,
            p_paddr: ENTRY,
            p_filesz: code.len() as u64,
            p_memsz: code.len() as u64 + 4096,
            p_align: 4096,
        };
        use vm_memory::ByteValued;
        [header.as_slice(), segment.as_slice(), code].concat()
    }

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn a_kernel_lands_where_it_is_linked() {
        let memory = memory(32);
        let file = file(&kernel(b"code"));
        let (entry, end) = load_kernel(&memory, file.path()).unwrap();
        assert_eq!(entry.0, ENTRY);
        assert_eq!(end, ENTRY + 4 + 4096);
        assert_eq!(memory.read_obj::<[u8; 4]>(entry).unwrap(), *b"code");
    }

    #[test]
    fn what_is_no_kernel_is_named_so() {
        let memory = memory(32);
        let bz_image = file(&[0x4d; 4096]);
        let error = load_kernel(&memory, bz_image.path()).unwrap_err();
        assert!(matches!(error, BootError::NotElf { .. }), "{error:?}");
        let error = load_kernel(&memory, Path::new("/nonexistent/vmlinux")).unwrap_err();
        assert!(matches!(error, BootError::Open { .. }), "{error:?}");
        assert_eq!(error.to_string(), "/nonexistent/vmlinux cannot be read");
    }

    #[test]
    fn a_truncated_kernel_is_refused_at_every_length() {
        let memory = memory(32);
        let whole = kernel(&[0x90; 64]);
        for length in 0..whole.len() {
            let file = file(&whole[..length]);
            assert!(load_kernel(&memory, file.path()).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn an_entry_outside_the_kernel_is_refused() {
        let file = file(&kernel(b"code"));
        file.as_file()
            .write_all_at(&(2 * ENTRY).to_le_bytes(), 24)
            .unwrap();
        let error = load_kernel(&memory(32), file.path()).unwrap_err();
        assert!(matches!(error, BootError::Entry { .. }), "{error:?}");
    }

    #[test]
    fn the_initrd_ends_at_the_end_of_memory() {
        let memory = memory(32);
        let file = file(&[7; 5000]);
        let (address, size) = load_initrd(&memory, file.path(), 0x200_0000 - 8192).unwrap();
        assert_eq!((address.0, size), (0x200_0000 - 8192, 5000));
        let mut bytes = [0; 5000];
        memory.read_slice(&mut bytes, address).unwrap();
        assert_eq!(bytes, [7; 5000]);
        let error = load_initrd(&memory, file.path(), 0x200_0000 - 8191).unwrap_err();
        assert!(matches!(error, BootError::NoRoom { memory_mib: 32 }));
    }

    #[test]
    fn devices_go_before_inits_arguments() {
        let line = command_line("console=hvc0 -- --shell", &[(0xd000_0000, 5), (0xd000_1000, 6)]).unwrap();
        assert_eq!(
            line,
            "console=hvc0 virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6 -- --shell"
        );
    }

    #[test]
    fn a_command_line_that_a_kernel_would_cut_is_refused() {
        let fits = "x".repeat(layout::COMMAND_LINE_MAX - 1);
        assert!(command_line(&fits, &[]).is_ok());
        assert!(matches!(
            command_line(&format!("{fits}x"), &[]),
            Err(BootError::CommandLineTooLong {
                length: layout::COMMAND_LINE_MAX
            })
        ));
        assert!(matches!(
            command_line("a\0b", &[]),
            Err(BootError::CommandLineCharacters)
        ));
    }

    #[test]
    fn the_memory_map_covers_all_memory_but_the_reserved() {
        let map = e820(&memory(4096));
        let ranges: Vec<(u64, u64, u32)> = map
            .iter()
            .map(|entry| (entry.addr, entry.size, entry.r#type))
            .collect();
        assert_eq!(
            ranges,
            [
                (0, 0x9_fc00, 1),
                (0x9_fc00, 0x6_0400, 2),
                (0x10_0000, 0xbff0_0000, 1),
                (1 << 32, 1 << 30, 1)
            ]
        );
    }

    proptest! {
        #[test]
        fn damaged_kernels_do_not_harm(at in 0usize..184, byte: u8) {
            let mut bytes = kernel(&[0x90; 64]);
            bytes[at] = byte;
            let file = file(&bytes);
            let memory = memory(32);
            if let Ok((entry, end)) = load_kernel(&memory, file.path()) {
                prop_assert!(entry >= layout::KERNEL_START);
                prop_assert!(entry.0 < end);
            }
        }
    }
}
