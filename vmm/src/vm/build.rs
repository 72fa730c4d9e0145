//! Puts a machine together, up to but without its first instruction.

use std::{ffi::CString, io, os::unix::ffi::OsStrExt, path::Path, sync::Arc};

use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{VmConfig, VmError, vcpu::Buses};
use crate::{
    arch::current::{boot, cpuid, layout, mptable, registers},
    event_loop::EventLoop,
    legacy::{Ports, serial::Serial},
    memory::{self, GuestRam, GuestRegions},
    virtio::{
        VirtioDevice,
        mmio::{Doorbells, MmioBus, MmioInterrupt, MmioTransport, registers::QUEUE_NOTIFY},
    },
};

/// A machine whose vCPUs have not run.
///
/// The order of its parts is the order in which they are dropped: devices before the loop they run on, memory after
/// everything that uses it.
pub(super) struct Machine {
    pub(super) buses: Arc<Buses>,
    pub(super) vcpus: Vec<VcpuFd>,
    pub(super) kept: Kept,
}

/// What must live as long as the machine runs.
pub(super) struct Kept {
    pub(super) event_loop: Option<EventLoop>,
    pub(super) vm: Arc<VmFd>,
    pub(super) memory: GuestRam,
}

/// Opens KVM and sees that it is usable.
pub(crate) fn open_kvm(path: &Path) -> Result<Kvm, VmError> {
    let open_error = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => VmError::KvmMissing {
            path: path.to_owned(),
            source,
        },
        io::ErrorKind::PermissionDenied => VmError::KvmDenied {
            path: path.to_owned(),
            source,
        },
        _ => VmError::KvmOpen {
            path: path.to_owned(),
            source,
        },
    };
    let c_path = CString::new(path.as_os_str().as_bytes())
        .map_err(|error| open_error(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
    let kvm = Kvm::new_with_path(c_path)
        .map_err(|error| open_error(io::Error::from_raw_os_error(error.errno())))?;
    let version = kvm.get_api_version();
    if version != kvm_bindings::KVM_API_VERSION as i32 {
        return Err(VmError::KvmVersion {
            path: path.to_owned(),
            version,
        });
    }
    let needed = [
        (Cap::UserMemory, "memory given by the program"),
        (Cap::Irqchip, "interrupt controllers of its own"),
        (Cap::Pit2, "a timer of its own"),
        (Cap::Ioeventfd, "notifications by eventfd (ioeventfd)"),
        (Cap::Irqfd, "interrupts by eventfd (irqfd)"),
        (Cap::ExtCpuid, "CPUID tables (KVM_GET_SUPPORTED_CPUID)"),
        (Cap::SetTssAddr, "KVM_SET_TSS_ADDR"),
        (Cap::ImmediateExit, "immediate_exit"),
    ];
    match needed.into_iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
        None => Ok(kvm),
        Some((_, what)) => Err(VmError::KvmLacks(what)),
    }
}

/// Builds the machine.
pub(super) fn build(config: VmConfig) -> Result<Machine, VmError> {
    check_memory_size(config.memory_mib)?;
    check_device_count(config.devices.len())?;
    let kvm = open_kvm(&config.kvm_path)?;
    let most = u8::try_from(kvm.get_max_vcpus())
        .unwrap_or(u8::MAX)
        .min(cpuid::MAX_CPUS);
    if !(1..=most).contains(&config.cpus) {
        return Err(VmError::Cpus {
            asked: config.cpus,
            most,
        });
    }

    let vm = Arc::new(create_vm(&kvm)?);
    let regions = map_memory(&vm, config.memory_mib)?;

    let (entry, kernel_end) = boot::load_kernel(&regions, &config.kernel)?;
    let initrd = match &config.initrd {
        Some(path) => Some(boot::load_initrd(&regions, path, kernel_end)?),
        None => None,
    };
    let places: Vec<(u64, u32)> = (0..config.devices.len())
        .map(|slot| (layout::mmio_base(slot), layout::MMIO_IRQS[slot]))
        .collect();
    let command_line = boot::command_line(&config.cmdline, &places)?;
    boot::write_parameters(&regions, &command_line, initrd)?;
    mptable::write(&regions, config.cpus).map_err(boot::BootError::from)?;
    registers::write_tables(&regions).map_err(boot::BootError::from)?;

    let memory = GuestRam::new(regions);
    let vcpus = create_vcpus(&kvm, &vm, config.cpus, entry)?;
    let event_loop = if config.devices.is_empty() {
        None
    } else {
        Some(EventLoop::spawn("vmm-devices")?)
    };
    let mut transports = Vec::with_capacity(places.len());
    if let Some(event_loop) = &event_loop {
        for (device, (base, irq)) in config.devices.into_iter().zip(&places) {
            transports.push(transport(device, &vm, &memory, event_loop, *base, *irq)?);
        }
    }
    let serial_line = interrupt_line(&vm, layout::SERIAL_IRQ)?;
    let buses = Buses {
        ports: Ports::new(Serial::new(serial_line, config.serial_output)),
        mmio: MmioBus::new(layout::MMIO_START, layout::MMIO_STRIDE, transports),
    };
    Ok(Machine {
        buses: Arc::new(buses),
        vcpus,
        kept: Kept {
            event_loop,
            vm,
            memory,
        },
    })
}

fn check_memory_size(asked_mib: u64) -> Result<(), VmError> {
    let (least_mib, most_mib) = (layout::MEMORY_MIN_MIB, layout::MEMORY_MAX_MIB);
    if (least_mib..=most_mib).contains(&asked_mib) {
        return Ok(());
    }
    Err(VmError::MemorySize {
        asked_mib,
        least_mib,
        most_mib,
    })
}

fn check_device_count(asked: usize) -> Result<(), VmError> {
    let most = layout::MMIO_IRQS.len();
    if asked > most {
        return Err(VmError::TooManyDevices { asked, most });
    }
    Ok(())
}

fn create_vm(kvm: &Kvm) -> Result<VmFd, VmError> {
    let vm = loop {
        match kvm.create_vm() {
            Ok(vm) => break vm,
            // A signal came meanwhile; KVM gives up at once.
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(kvm_error("create a machine")(error)),
        }
    };
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
        .map_err(kvm_error("place its identity map"))?;
    vm.set_tss_address(layout::KVM_TSS)
        .map_err(kvm_error("place its task state segment"))?;
    vm.create_irq_chip()
        .map_err(kvm_error("make interrupt controllers"))?;
    let pit = kvm_pit_config {
        flags: KVM_PIT_SPEAKER_DUMMY,
        ..Default::default()
    };
    vm.create_pit2(pit).map_err(kvm_error("make a timer"))?;
    Ok(vm)
}

fn map_memory(vm: &VmFd, mib: u64) -> Result<GuestRegions, VmError> {
    let regions =
        memory::allocate(&layout::ram_ranges(mib)).map_err(|source| VmError::Memory { mib, source })?;
    for (slot, region) in regions.iter().enumerate() {
        let slot = kvm_userspace_memory_region {
            slot: slot as u32,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the range is a mapping that outlives the VM: `Machine` drops memory last.
        unsafe { vm.set_user_memory_region(slot) }.map_err(kvm_error("map the guest's memory"))?;
    }
    Ok(regions)
}

fn create_vcpus(
    kvm: &Kvm,
    vm: &VmFd,
    cpus: u8,
    entry: vm_memory::GuestAddress,
) -> Result<Vec<VcpuFd>, VmError> {
    let supported = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(kvm_error("say what CPUs it supports"))?;
    let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    let mut vcpus = Vec::with_capacity(usize::from(cpus));
    for index in 0..cpus {
        let vcpu = vm
            .create_vcpu(u64::from(index))
            .map_err(kvm_error("create a vCPU"))?;
        let entries = cpuid::for_vcpu(&supported, index, cpus, tsc_deadline);
        let cpuid = kvm_bindings::CpuId::from_entries(&entries)
            .map_err(|_| VmError::KvmLacks("room for this many CPUID entries"))?;
        vcpu.set_cpuid2(&cpuid)
            .map_err(kvm_error("take a vCPU's CPUID"))?;
        registers::set_common(&vcpu)?;
        if index == 0 {
            registers::set_boot_processor(&vcpu, entry)?;
        }
        vcpus.push(vcpu);
    }
    Ok(vcpus)
}

fn transport(
    device: Box<dyn VirtioDevice>,
    vm: &Arc<VmFd>,
    memory: &GuestRam,
    event_loop: &EventLoop,
    base: u64,
    irq: u32,
) -> Result<MmioTransport, VmError> {
    let interrupt = Arc::new(MmioInterrupt::new(interrupt_line(vm, irq)?));
    let doorbells = KvmDoorbells {
        vm: Arc::clone(vm),
        address: base + QUEUE_NOTIFY,
    };
    Ok(MmioTransport::new(
        device,
        memory.clone(),
        event_loop.handle(),
        Box::new(doorbells),
        interrupt,
    ))
}

/// An eventfd that raises interrupt line `irq`.
fn interrupt_line(vm: &VmFd, irq: u32) -> Result<EventFd, VmError> {
    let line = EventFd::new(EFD_NONBLOCK).map_err(VmError::EventFd)?;
    vm.register_irqfd(&line, irq)
        .map_err(kvm_error("connect an interrupt line"))?;
    Ok(line)
}

/// Kicks that KVM turns into an eventfd without leaving the kernel.
struct KvmDoorbells {
    vm: Arc<VmFd>,
    address: u64,
}

impl Doorbells for KvmDoorbells {
    fn connect(&self, queue: u16, kick: &EventFd) -> io::Result<()> {
        let address = IoEventAddress::Mmio(self.address);
        self.vm
            .register_ioevent(kick, &address, u32::from(queue))
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))
    }

    fn disconnect(&self, queue: u16, kick: &EventFd) -> io::Result<()> {
        let address = IoEventAddress::Mmio(self.address);
        self.vm
            .unregister_ioevent(kick, &address, u32::from(queue))
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))
    }
}

fn kvm_error(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VmError {
    move |source| VmError::Kvm { what, source }
}
