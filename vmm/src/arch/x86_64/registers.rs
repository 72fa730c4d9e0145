//! The boot processor's first state: 64-bit mode, flat segments, the first gigabyte mapped one to one.

use kvm_bindings::{Msrs, kvm_fpu, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::layout;
use crate::memory::GuestRegions;

/// CR0: protected mode.
pub const CR0_PE: u64 = 1;
/// CR0: the x87 reports by exception (always on in 64-bit mode).
pub const CR0_NE: u64 = 1 << 5;
/// CR0: extension type, hard-wired to 1.
pub const CR0_ET: u64 = 1 << 4;
/// CR0: paging.
pub const CR0_PG: u64 = 1 << 31;
/// CR4: physical address extension, which long mode needs.
pub const CR4_PAE: u64 = 1 << 5;
/// EFER: long mode enabled, and active.
pub const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;

const PAGE_PRESENT: u64 = 1;
const PAGE_WRITABLE: u64 = 2;
const PAGE_LARGE: u64 = 1 << 7;
/// The boot protocol's selectors (`__BOOT_CS`, `__BOOT_DS`), and one for a task.
const SELECTOR_CODE: u16 = 0x10;
const SELECTOR_DATA: u16 = 0x18;
const SELECTOR_TASK: u16 = 0x20;

/// What the boot processor could not be set up with.
#[derive(Debug, thiserror::Error)]
pub enum RegistersError {
    /// The tables do not fit in guest memory.
    #[error("the first page tables could not be written to guest memory")]
    Memory(#[from] GuestMemoryError),
    /// KVM refused.
    #[error("KVM refused the vCPU's {what}")]
    Kvm {
        /// Which part of the state.
        what: &'static str,
        /// Why.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// KVM took fewer model-specific registers than it was given.
    #[error("KVM refused model-specific register {0:#x}")]
    Msr(u32),
}

/// Puts the global descriptor table and the page tables into guest memory.
pub fn write_tables(memory: &GuestRegions) -> Result<(), GuestMemoryError> {
    for (index, entry) in gdt().iter().enumerate() {
        memory.write_obj(*entry, GuestAddress(layout::GDT.0 + index as u64 * 8))?;
    }
    write_identity_map(memory, layout::PAGE_TABLES)
}

/// Maps the first GiB one to one with 2 MiB pages. Takes three pages at `at`.
pub fn write_identity_map(memory: &GuestRegions, at: GuestAddress) -> Result<(), GuestMemoryError> {
    let (directory_pointers, directory) = (at.0 + 0x1000, at.0 + 0x2000);
    memory.write_obj(directory_pointers | PAGE_PRESENT | PAGE_WRITABLE, at)?;
    memory.write_obj(
        directory | PAGE_PRESENT | PAGE_WRITABLE,
        GuestAddress(directory_pointers),
    )?;
    for index in 0..512u64 {
        memory.write_obj(
            index << 21 | PAGE_PRESENT | PAGE_WRITABLE | PAGE_LARGE,
            GuestAddress(directory + index * 8),
        )?;
    }
    Ok(())
}

/// Sets the boot processor to jump to a kernel's 64-bit entry point.
pub fn set_boot_processor(vcpu: &VcpuFd, entry: GuestAddress) -> Result<(), RegistersError> {
    let mut sregs = vcpu
        .get_sregs()
        .map_err(|source| kvm_error("special registers", source))?;
    set_long_mode(&mut sregs, layout::PAGE_TABLES);
    sregs.gdt.base = layout::GDT.0;
    sregs.gdt.limit = (size_of_val(&gdt()) - 1) as u16;
    vcpu.set_sregs(&sregs)
        .map_err(|source| kvm_error("special registers", source))?;

    let regs = kvm_regs {
        rip: entry.0,
        rsi: layout::ZERO_PAGE.0,
        rsp: layout::BOOT_STACK,
        rbp: layout::BOOT_STACK,
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&regs)
        .map_err(|source| kvm_error("general registers", source))
}

/// Sets what every vCPU starts with: floating point, model-specific registers, local interrupts.
pub fn set_common(vcpu: &VcpuFd) -> Result<(), RegistersError> {
    let fpu = kvm_fpu {
        fcw: 0x37f,
        mxcsr: 0x1f80,
        ..Default::default()
    };
    vcpu.set_fpu(&fpu)
        .map_err(|source| kvm_error("floating-point state", source))?;
    set_msrs(vcpu)?;
    set_local_interrupts(vcpu)
}

/// Flat 64-bit segments and paging from the tables at `page_tables`.
pub fn set_long_mode(sregs: &mut kvm_sregs, page_tables: GuestAddress) {
    let code = segment(SELECTOR_CODE, 0xb, true);
    let data = segment(SELECTOR_DATA, 0x3, false);
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    // A busy 64-bit task: Intel's entry checks want one.
    sregs.tr = kvm_segment {
        limit: 0x67,
        selector: SELECTOR_TASK,
        type_: 0xb,
        present: 1,
        ..Default::default()
    };
    sregs.cr3 = page_tables.0;
    sregs.cr4 |= CR4_PAE;
    sregs.cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_PG;
    sregs.efer |= EFER_LME_LMA;
}

fn segment(selector: u16, kind: u8, code: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_: kind,
        present: 1,
        dpl: 0,
        db: u8::from(!code),
        s: 1,
        l: u8::from(code),
        g: 1,
        ..Default::default()
    }
}

/// Null, null, 64-bit code, data, and the task's two halves.
fn gdt() -> [u64; 6] {
    [
        0,
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x0000_8b00_0000_0067,
        0,
    ]
}

fn set_msrs(vcpu: &VcpuFd) -> Result<(), RegistersError> {
    const IA32_MISC_ENABLE: u32 = 0x1a0;
    const MISC_ENABLE_FAST_STRING: u64 = 1;
    const MTRR_DEF_TYPE: u32 = 0x2ff;
    const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;
    let wanted = [
        (IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        // Memory is write-back unless page tables say otherwise; from power-on it would be uncached.
        (MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK),
    ];
    let entries = wanted.map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    });
    let msrs = Msrs::from_entries(&entries).map_err(|_| RegistersError::Msr(0))?;
    let taken = vcpu
        .set_msrs(&msrs)
        .map_err(|source| kvm_error("model-specific registers", source))?;
    match wanted.get(taken) {
        None => Ok(()),
        Some((index, _)) => Err(RegistersError::Msr(*index)),
    }
}

/// LINT0 takes what the old interrupt controller says, LINT1 non-maskable interrupts, as firmware leaves them and as the
/// MP table says.
fn set_local_interrupts(vcpu: &VcpuFd) -> Result<(), RegistersError> {
    const LVT_LINT0: usize = 0x350;
    const LVT_LINT1: usize = 0x360;
    const MODE_NMI: u32 = 4;
    const MODE_EXTERNAL: u32 = 7;
    let mut lapic = vcpu.get_lapic().map_err(|source| kvm_error("APIC", source))?;
    for (register, mode) in [(LVT_LINT0, MODE_EXTERNAL), (LVT_LINT1, MODE_NMI)] {
        set_delivery_mode(&mut lapic, register, mode);
    }
    vcpu.set_lapic(&lapic).map_err(|source| kvm_error("APIC", source))
}

fn set_delivery_mode(lapic: &mut kvm_lapic_state, register: usize, mode: u32) {
    let mut bytes = [0; 4];
    for (byte, from) in bytes.iter_mut().zip(&lapic.regs[register..]) {
        *byte = *from as u8;
    }
    let value = u32::from_le_bytes(bytes) & !0x700 | mode << 8;
    for (to, byte) in lapic.regs[register..].iter_mut().zip(value.to_le_bytes()) {
        *to = byte as _;
    }
}

fn kvm_error(what: &'static str, source: kvm_ioctls::Error) -> RegistersError {
    RegistersError::Kvm { what, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_gigabyte_is_mapped_to_itself() {
        let memory = crate::memory::allocate(&[(GuestAddress(0), 1 << 20)]).unwrap();
        write_tables(&memory).unwrap();
        let read = |at: u64| memory.read_obj::<u64>(GuestAddress(at)).unwrap();
        for address in [0u64, 0x1234_5678, (1 << 30) - 1] {
            let pointers = read(layout::PAGE_TABLES.0 + (address >> 39) * 8) & !0xfff;
            let directory = read(pointers + (address >> 30 & 511) * 8) & !0xfff;
            let entry = read(directory + (address >> 21 & 511) * 8);
            assert_ne!(entry & PAGE_LARGE, 0);
            assert_eq!(entry & !0x1f_ffff, address & !0x1f_ffff);
        }
    }

    #[test]
    fn the_delivery_mode_replaces_the_old_one() {
        let mut lapic = kvm_lapic_state::default();
        lapic.regs[0x352] = 1; // masked
        lapic.regs[0x351] = 5;
        set_delivery_mode(&mut lapic, 0x350, 7);
        assert_eq!(lapic.regs[0x350..0x354], [0, 7, 1, 0]);
    }
}
