//! What each vCPU says of itself: the host's abilities as KVM supports them, with this guest's topology.
//!
//! One package of `cpus` cores with one thread each, APIC ids 0 to `cpus` - 1, one shared last-level cache. The same
//! facts stand in several leaves, one generation of processors after the other; kernels complain, or compute nonsense
//! topologies, when they disagree.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// The number of CPUs a guest may have: APIC ids of the MP table have 8 bits, and 255 is the broadcast.
pub const MAX_CPUS: u8 = 254;

const LEAF_FEATURES: u32 = 0x1;
const LEAF_CACHES: u32 = 0x4;
const LEAF_PERFORMANCE: u32 = 0xa;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
const LEAF_AMD_FEATURES: u32 = 0x8000_0001;
const LEAF_AMD_SIZES: u32 = 0x8000_0008;
const LEAF_AMD_CACHES: u32 = 0x8000_001d;
const LEAF_AMD_TOPOLOGY: u32 = 0x8000_001e;
const LEAF_AMD_PERFORMANCE: u32 = 0x8000_0022;
const LEAF_AMD_TOPOLOGY_V2: u32 = 0x8000_0026;

/// Zero in EAX of a cache leaf: the list ends.
const CACHE_TYPE: u32 = 0x1f;

const FEATURE_ECX_VMX: u32 = 1 << 5;
const FEATURE_ECX_TSC_DEADLINE: u32 = 1 << 24;
const FEATURE_ECX_OSXSAVE: u32 = 1 << 27;
const FEATURE_ECX_HYPERVISOR: u32 = 1 << 31;
const FEATURE_EDX_HTT: u32 = 1 << 28;
const AMD_ECX_CMP_LEGACY: u32 = 1 << 1;
const AMD_ECX_SVM: u32 = 1 << 2;
const AMD_ECX_PERFCTR_CORE: u32 = 1 << 23;

/// Turns what KVM supports into what vCPU `cpu` of `cpus` is told.
///
/// `tsc_deadline` is whether KVM's APIC timer has TSC-deadline mode, which KVM reports elsewhere.
pub fn for_vcpu(supported: &CpuId, cpu: u8, cpus: u8, tsc_deadline: bool) -> Vec<kvm_cpuid_entry2> {
    let topology = Topology::new(cpu, cpus, is_amd(supported));
    let mut entries: Vec<kvm_cpuid_entry2> = supported
        .as_slice()
        .iter()
        .filter(|entry| {
            // These describe the host's topology, or counters that the guest does not get.
            !matches!(
                entry.function,
                LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2 | LEAF_AMD_TOPOLOGY_V2 | LEAF_AMD_PERFORMANCE
            )
        })
        .copied()
        .collect();
    for entry in &mut entries {
        topology.adapt(entry, tsc_deadline);
    }
    entries.extend(topology.leaf_0xb());
    entries
}

/// Whether the vendor is AMD, or Hygon, whose processors are AMD's.
fn is_amd(supported: &CpuId) -> bool {
    const AUTHENTIC_AMD: u32 = u32::from_le_bytes(*b"Auth");
    const HYGON_GENUINE: u32 = u32::from_le_bytes(*b"Hygo");
    supported
        .as_slice()
        .iter()
        .any(|entry| entry.function == 0 && matches!(entry.ebx, AUTHENTIC_AMD | HYGON_GENUINE))
}

/// One vCPU's place in the package.
struct Topology {
    apic_id: u32,
    cpus: u32,
    /// The number of bits of an APIC id within the package.
    bits: u32,
    amd: bool,
}

impl Topology {
    fn new(cpu: u8, cpus: u8, amd: bool) -> Topology {
        let cpus = u32::from(cpus.max(1));
        Topology {
            apic_id: u32::from(cpu),
            cpus,
            bits: cpus.next_power_of_two().trailing_zeros(),
            amd,
        }
    }

    fn adapt(&self, entry: &mut kvm_cpuid_entry2, tsc_deadline: bool) {
        match entry.function {
            // The largest leaf: there must be room for the topology.
            0 => entry.eax = entry.eax.max(LEAF_TOPOLOGY),
            LEAF_FEATURES => self.adapt_features(entry, tsc_deadline),
            // EAX: cache type, level; CPUs that share this cache; cores in the package.
            LEAF_CACHES if entry.eax & CACHE_TYPE != 0 => {
                let sharing = self.sharing(entry.eax >> 5 & 7);
                entry.eax = entry.eax & 0x3fff | sharing << 14 | ((1 << self.bits) - 1) << 26;
            }
            LEAF_PERFORMANCE => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            LEAF_AMD_FEATURES => {
                entry.ecx &= !(AMD_ECX_SVM | AMD_ECX_PERFCTR_CORE | AMD_ECX_CMP_LEGACY);
                if self.amd && self.cpus > 1 {
                    entry.ecx |= AMD_ECX_CMP_LEGACY;
                }
            }
            // ECX: bits of the core id, cores less one. Reserved on Intel.
            LEAF_AMD_SIZES if self.amd => entry.ecx = self.bits << 12 | (self.cpus - 1),
            LEAF_AMD_CACHES if entry.eax & CACHE_TYPE != 0 => {
                entry.eax = entry.eax & 0x3fff | self.sharing(entry.eax >> 5 & 7) << 14;
            }
            // EAX: extended APIC id; EBX: threads per core less one, core id; ECX: nodes less one, node id.
            LEAF_AMD_TOPOLOGY => {
                entry.eax = self.apic_id;
                entry.ebx = self.apic_id & 0xff;
                entry.ecx = 0;
                entry.edx = 0;
            }
            _ => {}
        }
    }

    fn adapt_features(&self, entry: &mut kvm_cpuid_entry2, tsc_deadline: bool) {
        // EBX: APIC id, APIC ids reserved for the package, cache line size in 8 bytes, brand.
        entry.ebx = self.apic_id << 24 | (1 << self.bits) << 16 & 0x00ff_0000 | entry.ebx & 0xffff;
        // KVM sets OSXSAVE as the guest sets CR4. Virtual machines in the guest are not offered.
        entry.ecx &= !(FEATURE_ECX_OSXSAVE | FEATURE_ECX_VMX | FEATURE_ECX_TSC_DEADLINE);
        entry.ecx |= FEATURE_ECX_HYPERVISOR;
        if tsc_deadline {
            entry.ecx |= FEATURE_ECX_TSC_DEADLINE;
        }
        entry.edx &= !FEATURE_EDX_HTT;
        if self.cpus > 1 {
            entry.edx |= FEATURE_EDX_HTT;
        }
    }

    /// The field "CPUs that share this cache, less one" for a cache of `level`.
    fn sharing(&self, level: u32) -> u32 {
        if level >= 3 { (1 << self.bits) - 1 } else { 0 }
    }

    /// The extended topology leaf: a level of threads (one per core), a level of cores, an end.
    fn leaf_0xb(&self) -> [kvm_cpuid_entry2; 3] {
        const LEVEL_THREADS: u32 = 1;
        const LEVEL_CORES: u32 = 2;
        let level = |index, eax, ebx, kind: u32| kvm_cpuid_entry2 {
            function: LEAF_TOPOLOGY,
            index,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax,
            ebx,
            ecx: kind << 8 | index,
            edx: self.apic_id,
            ..Default::default()
        };
        [
            level(0, 0, 1, LEVEL_THREADS),
            level(1, self.bits, self.cpus, LEVEL_CORES),
            level(2, 0, 0, 0),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> CpuId {
        host_of(u32::from_le_bytes(*b"Auth"))
    }

    fn host_of(vendor: u32) -> CpuId {
        let leaf = |function, index, eax, ebx, ecx, edx| kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        };
        CpuId::from_entries(&[
            leaf(0, 0, 0xd, vendor, 0, 0),
            leaf(
                1,
                0,
                0xa20f12,
                0x0710_0800,
                FEATURE_ECX_VMX | FEATURE_ECX_OSXSAVE | 1,
                0x1,
            ),
            leaf(4, 0, 0x1c00_4121, 0, 0, 0),
            leaf(4, 3, 0x1c03_c163, 0, 0, 0),
            leaf(4, 4, 0, 0, 0, 0),
            leaf(0xa, 0, 0x0730_0404, 0, 0, 0x603),
            leaf(0xb, 0, 1, 2, 0x100, 5),
            leaf(0x1f, 0, 1, 2, 0x100, 5),
            leaf(0x4000_0001, 0, 0x0100_7efb, 0, 0, 0),
            leaf(0x8000_0001, 0, 0, 0, AMD_ECX_SVM | 1 << 22, 0),
            leaf(0x8000_0008, 0, 0x3030, 0, 0x700f, 0),
            leaf(0x8000_001d, 3, 0x3c163, 0, 0, 0),
            leaf(0x8000_001e, 0, 7, 0x103, 1, 0),
        ])
        .unwrap()
    }

    fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        let found: Vec<_> = entries
            .iter()
            .filter(|entry| (entry.function, entry.index) == (function, index))
            .collect();
        assert_eq!(found.len(), 1, "leaf {function:#x}.{index}");
        *found[0]
    }

    #[test]
    fn every_leaf_tells_the_same_apic_id() {
        for cpu in 0..3 {
            let entries = for_vcpu(&host(), cpu, 3, true);
            let id = u32::from(cpu);
            assert_eq!(find(&entries, 1, 0).ebx >> 24, id);
            assert_eq!(find(&entries, 0xb, 0).edx, id);
            assert_eq!(find(&entries, 0xb, 1).edx, id);
            assert_eq!(find(&entries, 0x8000_001e, 0).eax, id);
        }
    }

    #[test]
    fn every_leaf_tells_the_same_number_of_cores() {
        let entries = for_vcpu(&host(), 0, 3, true);
        assert_eq!(find(&entries, 1, 0).ebx >> 16 & 0xff, 4);
        assert_eq!(find(&entries, 4, 0).eax >> 26, 3);
        assert_eq!(find(&entries, 0xb, 1).eax, 2, "bits of the core number");
        assert_eq!(find(&entries, 0xb, 1).ebx, 3);
        assert_eq!(find(&entries, 0x8000_0008, 0).ecx, 2 << 12 | 2);
    }

    #[test]
    fn only_the_last_level_cache_is_shared() {
        let entries = for_vcpu(&host(), 0, 4, true);
        assert_eq!(find(&entries, 4, 0).eax >> 14 & 0xfff, 0);
        assert_eq!(find(&entries, 4, 3).eax >> 14 & 0xfff, 3);
        assert_eq!(find(&entries, 4, 4).eax, 0, "the end of the list stays the end");
        assert_eq!(find(&entries, 0x8000_001d, 3).eax >> 14 & 0xfff, 3);
    }

    #[test]
    fn features_are_the_guests() {
        let entries = for_vcpu(&host(), 0, 1, false);
        let features = find(&entries, 1, 0);
        assert_eq!(features.ecx, FEATURE_ECX_HYPERVISOR | 1);
        assert_eq!(features.edx & FEATURE_EDX_HTT, 0);
        assert_eq!(features.ebx, 0x0001_0800);
        assert_eq!(find(&entries, 0xa, 0).eax, 0, "no performance counters");
        assert_eq!(find(&entries, 0x8000_0001, 0).ecx, 1 << 22);
        assert_eq!(
            find(&entries, 0x4000_0001, 0).eax,
            0x0100_7efb,
            "KVM's own leaves pass"
        );
        assert!(!entries.iter().any(|entry| entry.function == LEAF_TOPOLOGY_V2));

        let entries = for_vcpu(&host(), 1, 2, true);
        let features = find(&entries, 1, 0);
        assert_ne!(features.ecx & FEATURE_ECX_TSC_DEADLINE, 0);
        assert_ne!(features.edx & FEATURE_EDX_HTT, 0);
    }

    #[test]
    fn fields_of_amd_stay_empty_on_intel() {
        let entries = for_vcpu(&host_of(u32::from_le_bytes(*b"Genu")), 0, 2, true);
        assert_eq!(find(&entries, 0x8000_0001, 0).ecx & AMD_ECX_CMP_LEGACY, 0);
        assert_eq!(find(&entries, 0x8000_0008, 0).ecx, 0x700f, "as KVM has it");
        assert_eq!(find(&entries, 0xb, 1).ebx, 2);
    }

    #[test]
    fn the_most_cpus_fit() {
        let entries = for_vcpu(&host(), MAX_CPUS - 1, MAX_CPUS, true);
        assert_eq!(find(&entries, 1, 0).ebx >> 24, u32::from(MAX_CPUS - 1));
        assert_eq!(find(&entries, 0xb, 1).eax, 8);
        assert_eq!(find(&entries, 0x8000_0008, 0).ecx, 8 << 12 | 253);
    }
}
