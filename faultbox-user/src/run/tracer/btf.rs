//! Where fields stand in the running kernel's structures, from the kernel's own type information
//! (BTF: Documentation/bpf/btf.rst in the kernel's sources).

use std::path::Path;

/// The kernel's types, where it was built with them.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;

/// A kernel's types, undecoded.
pub struct Btf {
    types: Vec<u8>,
    strings: Vec<u8>,
}

impl Btf {
    /// The running kernel's; `None` if it has none or they cannot be read.
    pub fn of_kernel() -> Option<Btf> {
        Btf::read(Path::new(VMLINUX))
    }

    fn read(path: &Path) -> Option<Btf> {
        Btf::parse(&std::fs::read(path).ok()?)
    }

    /// The header: magic, version, flags, then the lengths of itself and of both sections (`struct btf_header`).
    fn parse(bytes: &[u8]) -> Option<Btf> {
        let word = |at: usize| -> Option<usize> {
            let bytes = bytes.get(at..at + 4)?.try_into().ok()?;
            usize::try_from(u32::from_ne_bytes(bytes)).ok()
        };
        if u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?) != MAGIC {
            return None;
        }
        let header = word(4)?;
        let section = |offset: usize, length: usize| {
            let start = header.checked_add(offset)?;
            bytes.get(start..start.checked_add(length)?)
        };
        Some(Btf {
            types: section(word(8)?, word(12)?)?.to_vec(),
            strings: section(word(16)?, word(20)?)?.to_vec(),
        })
    }

    /// The offset in bytes of a direct member of a structure; `None` if there is no such member, or it is a bit-field.
    pub fn offset(&self, structure: &str, member: &str) -> Option<u32> {
        let mut at = 0;
        while let Some(kind) = self.kind(at) {
            let length = kind.length()?;
            if kind.is_struct() && self.string(kind.name) == structure.as_bytes() {
                let found = self.member(&kind, at + 12, member);
                if found.is_some() {
                    return found;
                }
            }
            at += length;
        }
        None
    }

    fn member(&self, kind: &Kind, first: usize, member: &str) -> Option<u32> {
        (0..kind.members).find_map(|index| {
            let at = first + index as usize * 12;
            if self.string(self.word(at)?) != member.as_bytes() {
                return None;
            }
            let bits = self.word(at + 8)?;
            // With the flag, the upper eight bits are a bit-field's size.
            let (size, bits) = if kind.flag {
                (bits >> 24, bits & 0x00ff_ffff)
            } else {
                (0, bits)
            };
            (size == 0 && bits.is_multiple_of(8)).then_some(bits / 8)
        })
    }

    fn kind(&self, at: usize) -> Option<Kind> {
        let info = self.word(at + 4)?;
        Some(Kind {
            name: self.word(at)?,
            kind: info >> 24 & 0x1f,
            members: info & 0xffff,
            flag: info >> 31 == 1,
        })
    }

    fn word(&self, at: usize) -> Option<u32> {
        let bytes = self.types.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_ne_bytes(bytes))
    }

    fn string(&self, at: u32) -> &[u8] {
        let rest = self.strings.get(at as usize..).unwrap_or_default();
        rest.split(|b| *b == 0).next().unwrap_or_default()
    }
}

/// The fixed beginning of a type (`struct btf_type`).
struct Kind {
    name: u32,
    kind: u32,
    members: u32,
    flag: bool,
}

impl Kind {
    fn is_struct(&self) -> bool {
        matches!(self.kind, KIND_STRUCT | KIND_UNION)
    }

    /// How long it is with what follows it; `None` for a kind that is newer than this code, after which nothing can be found.
    fn length(&self) -> Option<usize> {
        let members = self.members as usize;
        let more = match self.kind {
            // int, variable, declaration tag
            1 | 14 | 17 => 4,
            // array
            3 => 12,
            // enum, function prototype
            6 | 13 => members * 8,
            // structure, union, data section, 64-bit enum
            KIND_STRUCT | KIND_UNION | 15 | 19 => members * 12,
            // pointer, forward, typedef, volatile, const, restrict, function, float, type tag
            2 | 7..=12 | 16 | 18 => 0,
            _ => return None,
        };
        Some(12 + more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two structures: one without the member, one with it at byte 8 behind an integer.
    fn sample() -> Vec<u8> {
        let strings = b"\0other\0task\0pid\0flags\0";
        let types: Vec<u32> = [
            [1, 4 << 24 | 1, 4].as_slice(),
            &[16, 2, 0],
            &[7, 1 << 24, 4, 0x20],
            &[7, 4 << 24 | 2, 16],
            &[16, 2, 0],
            &[12, 2, 64],
            // With the flag: a bit-field, and a member that is none.
            &[1, 1 << 31 | 4 << 24 | 2, 8],
            &[16, 2, 3 << 24],
            &[12, 2, 32],
        ]
        .concat();
        let types: Vec<u8> = types.iter().flat_map(|w| w.to_ne_bytes()).collect();
        let mut bytes = MAGIC.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        for word in [24, 0, types.len(), types.len(), strings.len()] {
            bytes.extend((word as u32).to_ne_bytes());
        }
        bytes.extend(types);
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn members_are_found_by_name() {
        let btf = Btf::parse(&sample()).unwrap();
        assert_eq!(btf.offset("task", "pid"), Some(8));
        assert_eq!(btf.offset("task", "flags"), Some(0));
        assert_eq!(btf.offset("other", "pid"), Some(4));
        assert_eq!(btf.offset("task", "none"), None);
        assert_eq!(btf.offset("none", "pid"), None);
    }

    #[test]
    fn broken_types_are_no_types() {
        let whole = sample();
        for cut in 0..whole.len() {
            if let Some(btf) = Btf::parse(&whole[..cut]) {
                let _ = btf.offset("task", "pid");
            }
        }
        let mut wrong = whole;
        wrong[0] ^= 1;
        assert!(Btf::parse(&wrong).is_none());
    }

    #[test]
    fn the_running_kernel_has_the_fields_that_are_asked_for() {
        let Some(btf) = Btf::of_kernel() else {
            eprintln!("SKIPPED: this kernel has no BTF");
            return;
        };
        let (pid, tgid) = (
            btf.offset("task_struct", "pid").unwrap(),
            btf.offset("task_struct", "tgid").unwrap(),
        );
        assert_eq!(tgid, pid + 4);
        assert!(btf.offset("task_struct", "exit_code").is_some());
        assert!(btf.offset("linux_binprm", "filename").is_some());
    }
}
