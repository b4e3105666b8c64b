//! Values that belong to threads (BPF_MAP_TYPE_TASK_STORAGE, Linux 5.13 for programs of these types).

use core::ptr::{self, NonNull};

use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, BPF_LOCAL_STORAGE_GET_F_CREATE, bpf_map_type};
use aya_ebpf::helpers::generated::{bpf_get_current_task_btf, bpf_task_storage_get};

/// A definition that the loader reads from the type's BTF, field by field, as those of [`aya_ebpf::btf_maps`].
#[repr(C)]
pub struct TaskStorage<T> {
    r#type: *const [i32; bpf_map_type::BPF_MAP_TYPE_TASK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; BPF_F_NO_PREALLOC as usize],
}

// SAFETY: the fields are placeholders that nobody reads; the loader puts the map in their place.
unsafe impl<T> Sync for TaskStorage<T> {}

impl<T> TaskStorage<T> {
    /// A definition.
    pub const fn new() -> Self {
        TaskStorage {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }

    /// The current thread's value, if it has one.
    #[inline(always)]
    pub fn get(&self) -> Option<NonNull<T>> {
        self.of_current(0)
    }

    /// The same; zeroed, if it had none. None if there is no memory.
    #[inline(always)]
    pub fn get_or_make(&self) -> Option<NonNull<T>> {
        self.of_current(BPF_LOCAL_STORAGE_GET_F_CREATE.into())
    }

    #[inline(always)]
    fn of_current(&self, flags: u64) -> Option<NonNull<T>> {
        let map = ptr::from_ref(self).cast_mut().cast();
        // SAFETY: the loader has put a map of this type in our place; the helpers take nothing else.
        let value = unsafe { bpf_task_storage_get(map, bpf_get_current_task_btf(), ptr::null_mut(), flags) };
        NonNull::new(value.cast())
    }
}
