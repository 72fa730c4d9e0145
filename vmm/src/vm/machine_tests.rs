//! Real machines, with guests of a few instructions: every transition of the lifecycle on KVM itself.
//!
//! They need a KVM that opens, and no more: one that emulates ring 0 is slow but runs these. Without one they are skipped,
//! unless `BERTH_REQUIRE_KVM` is set.

use std::{
    io::{self, Write},
    path::PathBuf,
    sync::{Arc, Mutex, mpsc},
    thread,
    time::Duration,
};

use super::*;
use crate::{
    arch::current::layout,
    virtio::{ActivateError, Activation, mmio::registers as reg},
};

const ENTRY: u64 = 0x100_0000;

/// Instructions of guests.
mod code {
    pub(super) const RESET: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64]; // mov al, 0xfe; out 0x64, al
    pub(super) const TRIPLE_FAULT: &[u8] = &[0x0f, 0x0b]; // ud2, without an interrupt table
    pub(super) const WEDGE: &[u8] = &[0xfa, 0xeb, 0xfe]; // cli; jmp to itself
    pub(super) const HALT: &[u8] = &[0xfa, 0xf4, 0xeb, 0xfd]; // cli; hlt; jmp to hlt

    /// Writes a letter to the serial port.
    pub(super) fn print(letter: u8) -> Vec<u8> {
        // mov dx, 0x3f8; mov al, letter; out dx, al
        vec![0x66, 0xba, 0xf8, 0x03, 0xb0, letter, 0xee]
    }

    /// Maps the virtio-mmio devices, which lie beyond the first GiB, and points RBX at the first.
    pub(super) fn map_devices() -> Vec<u8> {
        let mut code = vec![0x48, 0xc7, 0x04, 0x25]; // mov qword [page directory pointer 3], directory
        code.extend(0xa018u32.to_le_bytes());
        code.extend(0xc003u32.to_le_bytes());
        code.extend([0x48, 0xb8]); // mov rax, large page at the devices
        code.extend(0xd000_0083u64.to_le_bytes());
        code.extend([0x48, 0x89, 0x04, 0x25]); // mov [directory entry], rax
        code.extend(0xc400u32.to_le_bytes());
        code.push(0xbb); // mov ebx, devices
        code.extend(0xd000_0000u32.to_le_bytes());
        code
    }

    /// Writes a register of the first device.
    pub(super) fn write_register(offset: u64, value: u32) -> Vec<u8> {
        let mut code = vec![0xc7, 0x83]; // mov dword [rbx + offset], value
        code.extend((offset as u32).to_le_bytes());
        code.extend(value.to_le_bytes());
        code
    }

    /// Starts the first device, without queues.
    pub(super) fn start_device() -> Vec<u8> {
        use super::reg;
        [
            map_devices(),
            write_register(reg::STATUS, 1),
            write_register(reg::STATUS, 3),
            write_register(reg::DRIVER_FEATURES_SEL, 1),
            write_register(reg::DRIVER_FEATURES, 1),
            write_register(reg::STATUS, 0xb),
            write_register(reg::STATUS, 0xf),
        ]
        .concat()
    }
}

/// The serial port's output.
#[derive(Clone, Default)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Output {
    fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }

    /// Waits for the guest to have printed a line.
    fn wait_for_line(&self) {
        while !self.bytes().contains(&b'\n') {
            thread::yield_now();
        }
    }
}

fn kvm_is_there() -> bool {
    let there = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok();
    assert!(
        there || std::env::var_os("BERTH_REQUIRE_KVM").is_none(),
        "BERTH_REQUIRE_KVM is set, and /dev/kvm cannot be opened"
    );
    there
}

/// A machine about to run these instructions.
struct Guest {
    config: VmConfig,
    output: Output,
    _kernel: tempfile::NamedTempFile,
}

impl Guest {
    /// None: there is no KVM here.
    fn new(code: &[&[u8]]) -> Option<Guest> {
        if !kvm_is_there() {
            eprintln!("skipped: /dev/kvm cannot be opened");
            return None;
        }
        let mut kernel = tempfile::NamedTempFile::new().unwrap();
        kernel.write_all(&elf(&code.concat())).unwrap();
        let output = Output::default();
        Some(Guest {
            config: VmConfig {
                kernel: kernel.path().to_owned(),
                initrd: None,
                cmdline: String::new(),
                cpus: 1,
                memory_mib: layout::MEMORY_MIN_MIB,
                devices: Vec::new(),
                serial_output: Box::new(output.clone()),
                kvm_path: PathBuf::from("/dev/kvm"),
            },
            output,
            _kernel: kernel,
        })
    }

    fn with_cpus(mut self, cpus: u8) -> Guest {
        self.config.cpus = cpus;
        self
    }

    fn with_device(mut self, device: impl VirtioDevice + 'static) -> Guest {
        self.config.devices.push(Box::new(device));
        self
    }

    fn start(self) -> (Vm, Output) {
        (Vm::start(self.config).unwrap(), self.output)
    }
}

/// A kernel of these instructions.
fn elf(code: &[u8]) -> Vec<u8> {
    use linux_loader::elf::{Elf64_Ehdr, Elf64_Phdr};
    use vm_memory::ByteValued;
    let header = Elf64_Ehdr {
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
    let segment = Elf64_Phdr {
        p_type: 1,
        p_flags: 7,
        p_offset: 120,
        p_vaddr: ENTRY,
        p_paddr: ENTRY,
        p_filesz: code.len() as u64,
        p_memsz: code.len() as u64,
        p_align: 4096,
    };
    [header.as_slice(), segment.as_slice(), code].concat()
}

#[test]
fn running_to_ended_by_the_reset_line() {
    let Some(guest) = Guest::new(&[&code::print(b'x'), code::RESET]) else {
        return;
    };
    let (vm, output) = guest.start();
    assert_eq!(vm.wait(), ExitReason::Reset);
    assert_eq!(vm.state(), VmState::Ended);
    assert_eq!(output.bytes(), b"x", "an unfinished line comes out at the end");
    assert_eq!(*vm.exited().borrow(), Some(ExitReason::Reset));
    assert!(vm.exit_counts().ports >= 1);
}

#[test]
fn running_to_ended_by_a_triple_fault() {
    let Some(guest) = Guest::new(&[code::TRIPLE_FAULT]) else {
        return;
    };
    assert_eq!(guest.start().0.wait(), ExitReason::Reset);
}

#[test]
fn running_to_ended_by_kill_of_a_wedged_guest() {
    let Some(guest) = Guest::new(&[&code::print(b'\n'), code::WEDGE]) else {
        return;
    };
    let (vm, output) = guest.with_cpus(2).start();
    output.wait_for_line();
    assert_eq!(vm.state(), VmState::Running);
    vm.kill();
    vm.kill();
    assert_eq!(vm.wait(), ExitReason::Killed);
    assert!(vm.pause().is_err());
    assert!(vm.resume().is_err());
}

#[test]
fn running_to_ended_by_kill_of_a_halted_guest() {
    let Some(guest) = Guest::new(&[code::HALT]) else {
        return;
    };
    let (vm, _) = guest.start();
    vm.kill();
    assert_eq!(vm.wait(), ExitReason::Killed);
}

#[test]
fn running_to_paused_and_back_whatever_the_guest_does() {
    for code in [code::WEDGE, code::HALT] {
        let Some(guest) = Guest::new(&[&code::print(b'\n'), code]) else {
            return;
        };
        let (vm, output) = guest.with_cpus(3).start();
        output.wait_for_line();
        for _ in 0..20 {
            vm.pause().unwrap();
            assert_eq!(vm.state(), VmState::Paused);
            vm.resume().unwrap();
            assert_eq!(vm.state(), VmState::Running);
        }
        vm.pause().unwrap();
        vm.kill();
        assert_eq!(vm.wait(), ExitReason::Killed);
    }
}

#[test]
fn a_paused_guest_does_not_run() {
    // Prints lines for ever.
    let mut code = code::print(b'\n');
    let back = -(code.len() as i8) - 2;
    code.extend([0xeb, back as u8]);
    let Some(guest) = Guest::new(&[&code]) else { return };
    let (vm, output) = guest.start();
    output.wait_for_line();
    vm.pause().unwrap();
    let exits = vm.exit_counts().ports;
    for _ in 0..1000 {
        thread::yield_now();
    }
    assert_eq!(vm.exit_counts().ports, exits);
    vm.resume().unwrap();
    while vm.exit_counts().ports == exits {
        thread::yield_now();
    }
}

#[test]
fn kill_races_with_the_guests_reset() {
    for round in 0..20 {
        let Some(guest) = Guest::new(&[code::RESET]) else {
            return;
        };
        let (vm, _) = guest.with_cpus(2).start();
        let vm = Arc::new(vm);
        let pauser = Arc::clone(&vm);
        let pauser = thread::spawn(move || drop(pauser.pause()));
        if round % 2 == 0 {
            vm.kill();
        }
        // The pause may have come first: then there is no reset to wait for before it ends.
        pauser.join().unwrap();
        drop(vm.resume());
        let reason = vm.wait();
        assert!(
            matches!(reason, ExitReason::Reset | ExitReason::Killed),
            "{reason}"
        );
        assert!(round % 2 == 0 || reason == ExitReason::Reset);
    }
}

#[test]
fn dropping_the_handle_ends_the_machine() {
    let Some(guest) = Guest::new(&[code::WEDGE]) else {
        return;
    };
    let (vm, _) = guest.start();
    let exited = vm.exited();
    drop(vm);
    assert_eq!(*exited.borrow(), Some(ExitReason::Killed));
}

/// A device that can block, and tells what happens to it.
struct Device {
    events: mpsc::Sender<&'static str>,
    /// Blocks a write to the configuration space until the other end is dropped.
    block_config: Option<mpsc::Receiver<()>>,
    /// Blocks deactivation likewise.
    block_deactivate: Option<mpsc::Receiver<()>>,
}

impl VirtioDevice for Device {
    fn device_id(&self) -> u32 {
        42
    }
    fn queue_max_sizes(&self) -> &[u16] {
        &[]
    }
    fn features(&self) -> u64 {
        0
    }
    fn read_config(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }
    fn write_config(&mut self, _: u64, _: &[u8]) {
        self.events.send("config").unwrap();
        if let Some(block) = self.block_config.take() {
            // Ends with an error when the test lets go.
            let _ = block.recv();
        }
    }
    fn activate(&mut self, _: Activation) -> Result<(), ActivateError> {
        self.events.send("activate").unwrap();
        Ok(())
    }
    fn deactivate(&mut self) {
        if let Some(block) = self.block_deactivate.take() {
            // As above.
            let _ = block.recv();
        }
        self.events.send("deactivate").unwrap();
    }
}

fn device() -> (Device, mpsc::Receiver<&'static str>) {
    let (events, seen) = mpsc::channel();
    let device = Device {
        events,
        block_config: None,
        block_deactivate: None,
    };
    (device, seen)
}

#[test]
fn a_device_is_deactivated_before_the_end_is_told() {
    let (device, seen) = device();
    let Some(guest) = Guest::new(&[&code::start_device(), code::RESET]) else {
        return;
    };
    let (vm, _) = guest.with_device(device).start();
    assert_eq!(vm.wait(), ExitReason::Reset);
    assert_eq!(seen.try_iter().collect::<Vec<_>>(), ["activate", "deactivate"]);
    assert!(vm.exit_counts().mmio_writes >= 6);
}

#[test]
fn a_stuck_device_does_not_hold_the_end() {
    let (mut device, seen) = device();
    let (release, block) = mpsc::channel();
    device.block_deactivate = Some(block);
    let Some(guest) = Guest::new(&[&code::start_device(), code::RESET]) else {
        return;
    };
    let (vm, _) = guest.with_device(device).start();
    assert_eq!(
        vm.wait(),
        ExitReason::Stuck {
            what: "virtio device 0 (of another kind)".into(),
            after: Box::new(ExitReason::Reset)
        }
    );
    drop(vm);
    drop(release);
    assert_eq!(seen.iter().collect::<Vec<_>>(), ["activate", "deactivate"]);
}

#[test]
fn a_vcpu_stuck_in_a_device_does_not_hold_the_end() {
    let (mut device, seen) = device();
    let (release, block) = mpsc::channel();
    device.block_config = Some(block);
    let Some(guest) = Guest::new(&[
        &code::map_devices(),
        &code::write_register(reg::CONFIG, 1),
        code::RESET,
    ]) else {
        return;
    };
    let (vm, _) = guest.with_device(device).start();
    assert_eq!(seen.recv().unwrap(), "config");
    let error = vm.pause().unwrap_err();
    assert!(
        matches!(error, VmError::PauseTimeout { running: 1, .. }),
        "{error}"
    );
    assert_eq!(vm.state(), VmState::Running);
    vm.kill();
    assert_eq!(
        vm.wait(),
        ExitReason::Stuck {
            what: "vCPU 0".into(),
            after: Box::new(ExitReason::Killed)
        }
    );
    drop(vm);
    drop(release);
    assert!(
        seen.recv_timeout(Duration::from_secs(30)).is_err(),
        "the device is gone"
    );
}

#[test]
fn machines_that_cannot_be_are_refused() {
    let Some(guest) = Guest::new(&[code::RESET]) else {
        return;
    };
    let mut config = guest.config;
    config.cpus = 0;
    assert!(matches!(Vm::start(config), Err(VmError::Cpus { asked: 0, .. })));

    let Some(guest) = Guest::new(&[code::RESET]) else {
        return;
    };
    let mut config = guest.config;
    config.memory_mib = 31;
    assert!(matches!(
        Vm::start(config),
        Err(VmError::MemorySize { asked_mib: 31, .. })
    ));

    let Some(mut guest) = Guest::new(&[code::RESET]) else {
        return;
    };
    for _ in 0..17 {
        guest = guest.with_device(device().0);
    }
    assert!(matches!(
        Vm::start(guest.config),
        Err(VmError::TooManyDevices { asked: 17, most: 16 })
    ));
}

#[test]
fn without_kvm_the_error_says_so() {
    let config = |kvm_path: &str| VmConfig {
        kernel: "/nonexistent".into(),
        initrd: None,
        cmdline: String::new(),
        cpus: 1,
        memory_mib: 64,
        devices: Vec::new(),
        serial_output: Box::new(io::sink()),
        kvm_path: kvm_path.into(),
    };
    assert!(matches!(
        Vm::start(config("/nonexistent/kvm")),
        Err(VmError::KvmMissing { .. })
    ));
    assert!(matches!(
        Vm::start(config("/dev/null")),
        Err(VmError::KvmVersion { version: -1, .. })
    ));
}
