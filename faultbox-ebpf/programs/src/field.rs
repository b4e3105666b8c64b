//! Reading kernel structures.

/// Reads the field at a constant's offset, if that is known.
macro_rules! field {
    ($base:expr, $offset:ident, $kind:ty) => {{
        // SAFETY: a read of our own constant; volatile, because user space sets it after compilation.
        let offset = unsafe { core::ptr::read_volatile(&raw const $offset) } as usize;
        if offset == 0 {
            None
        } else {
            // SAFETY: the helper checks the address.
            unsafe { aya_ebpf::helpers::bpf_probe_read_kernel($base.wrapping_add(offset).cast::<$kind>()) }.ok()
        }
    }};
}
