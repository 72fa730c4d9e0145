//! The guest of the probe: a few instructions each, that end by writing AL to a port.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::memory::GuestRegions;

/// The size of its memory in bytes.
pub(super) const MEMORY_SIZE: usize = 1 << 20;
/// Three pages of page tables.
pub(super) const PAGE_TABLES: GuestAddress = GuestAddress(0x1000);
/// The port it ends on.
pub(super) const DONE_PORT: u16 = 0xf4;
/// What it works on: aligned for XSAVE, with room for every state component.
pub(super) const DATA: GuestAddress = GuestAddress(0x1_0000);

const CODE: u64 = 0x5000;
const PROGRAM_SPACE: u64 = 0x100;

/// A program of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Program {
    /// Counts RCX down to zero.
    Loop,
    /// Compares 16 bytes at RDI with RDX:RAX and exchanges them for RCX:RBX. AL: whether they were equal.
    Cmpxchg16b,
    /// Enables XSAVE for x87 and SSE, saves to and restores from RDI. AL: 1.
    Xsave,
    /// The same with XSAVES.
    Xsaves,
}

impl Program {
    const ALL: [Program; 4] = [
        Program::Loop,
        Program::Cmpxchg16b,
        Program::Xsave,
        Program::Xsaves,
    ];

    /// Where it begins.
    pub(super) fn entry(self) -> GuestAddress {
        GuestAddress(CODE + self as u64 * PROGRAM_SPACE)
    }

    fn code(self) -> Vec<u8> {
        let body: &[&[u8]] = match self {
            Program::Loop => &[
                &[0xff, 0xc9], // dec ecx
                &[0x75, 0xfc], // jnz to it
            ],
            Program::Cmpxchg16b => &[
                &[0xf0, 0x48, 0x0f, 0xc7, 0x0f], // lock cmpxchg16b [rdi]
                &[0x0f, 0x94, 0xc0],             // sete al
            ],
            Program::Xsave => &[
                ENABLE_XSAVE,
                &[0x48, 0x0f, 0xae, 0x27], // xsave64 [rdi]
                &[0x48, 0x0f, 0xae, 0x2f], // xrstor64 [rdi]
                &[0xb0, 1],                // mov al, 1
            ],
            Program::Xsaves => &[
                ENABLE_XSAVE,
                &[0x48, 0x0f, 0xc7, 0x2f], // xsaves64 [rdi]
                &[0x48, 0x0f, 0xc7, 0x1f], // xrstors64 [rdi]
                &[0xb0, 1],                // mov al, 1
            ],
        };
        let end: &[u8] = &[
            0xe6,
            DONE_PORT as u8, // out DONE_PORT, al
            0xeb,
            0xfe, // jmp to itself
        ];
        [body.concat().as_slice(), end].concat()
    }
}

const ENABLE_XSAVE: &[u8] = &[
    0x0f, 0x20, 0xe0, // mov rax, cr4
    0x48, 0x0d, 0x00, 0x06, 0x04, 0x00, // or rax, OSFXSR | OSXMMEXCPT | OSXSAVE
    0x0f, 0x22, 0xe0, // mov cr4, rax
    0x31, 0xc9, // xor ecx, ecx
    0x0f, 0x01, 0xd0, // xgetbv
    0x83, 0xc8, 0x03, // or eax, x87 | SSE
    0x0f, 0x01, 0xd1, // xsetbv
    0xb8, 0x03, 0x00, 0x00, 0x00, // mov eax, 3
    0x31, 0xd2, // xor edx, edx
];

/// Puts all programs into memory.
pub(super) fn write_programs(memory: &GuestRegions) -> Result<(), GuestMemoryError> {
    for program in Program::ALL {
        memory.write_slice(&program.code(), program.entry())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_do_not_overlap() {
        for program in Program::ALL {
            assert!(program.code().len() as u64 <= PROGRAM_SPACE, "{program:?}");
        }
        let end = CODE + Program::ALL.len() as u64 * PROGRAM_SPACE;
        const { assert!(PAGE_TABLES.0 + 0x3000 <= CODE) };
        assert!(end <= DATA.0);
    }
}
