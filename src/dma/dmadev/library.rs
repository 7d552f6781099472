//! The dmadev library: its functions, looked up by name, and its structs.

use core::ffi::{CStr, c_char, c_int, c_void};

/// The library, of the line of DPDK that this is built for.
const LIBRARY: &CStr = if cfg!(dpdk_22_11) {
    c"librte_dmadev.so.23"
} else if cfg!(dpdk_24_11) {
    c"librte_dmadev.so.25"
} else {
    c"librte_dmadev.so.26"
};

/// Bytes of an element of `rte_dma_fp_objs`.
pub(super) const STRIDE: usize = if cfg!(dpdk_24_11) { 64 } else { 128 };

/// The beginning of `struct rte_dma_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Info {
    pub(super) name: *const c_char,
    pub(super) capabilities: u64,
    pub(super) max_vchans: u16,
    pub(super) max_desc: u16,
    pub(super) min_desc: u16,
    pub(super) max_sges: u16,
    pub(super) numa_node: i16,
    pub(super) nb_vchans: u16,
    /// More, in later lines.
    pub(super) rest: [u64; 4],
}

/// `struct rte_dma_conf` and `struct rte_dma_vchan_conf`, as far as they are not 0. Both are smaller
/// in all lines.
#[repr(C, align(8))]
pub(super) struct Conf {
    /// Number of channels; direction memory to memory (0).
    pub(super) first: u32,
    /// Number of descriptors.
    pub(super) nb_desc: u16,
    pub(super) rest: [u8; 250],
}

impl Conf {
    /// Zeros.
    pub(super) const EMPTY: Self = Self {
        first: 0,
        nb_desc: 0,
        rest: [0; 250],
    };
}

/// The beginning of an element of `rte_dma_fp_objs`.
#[repr(C)]
pub(super) struct FastPath {
    pub(super) private: *mut c_void,
    pub(super) copy: Option<unsafe extern "C" fn(*mut c_void, u16, u64, u64, u32, u64) -> c_int>,
    pub(super) copy_sg: *const c_void,
    pub(super) fill: *const c_void,
    pub(super) submit: Option<unsafe extern "C" fn(*mut c_void, u16) -> c_int>,
    pub(super) completed:
        Option<unsafe extern "C" fn(*mut c_void, u16, u16, *mut u16, *mut bool) -> u16>,
    pub(super) completed_status:
        Option<unsafe extern "C" fn(*mut c_void, u16, u16, *mut u16, *mut c_int) -> u16>,
    pub(super) burst_capacity: Option<unsafe extern "C" fn(*const c_void, u16) -> u16>,
}

type ByName = unsafe extern "C" fn(*const c_char) -> c_int;
type ById = unsafe extern "C" fn(i16) -> c_int;
type InfoGet = unsafe extern "C" fn(i16, *mut Info) -> c_int;
type Configure = unsafe extern "C" fn(i16, *const Conf) -> c_int;
type VchanSetup = unsafe extern "C" fn(i16, u16, *const Conf) -> c_int;

/// The functions of the library.
#[derive(Clone, Copy)]
pub(super) struct Library {
    pub(super) id_by_name: ByName,
    pub(super) info_get: InfoGet,
    pub(super) configure: Configure,
    pub(super) vchan_setup: VchanSetup,
    pub(super) start: ById,
    pub(super) stop: ById,
    /// A pointer to the array.
    pub(super) objects: *const *const u8,
}

impl Library {
    /// The library that the application has loaded, if it has.
    pub(super) fn find() -> Option<Self> {
        // SAFETY: only looks for a library that is loaded; it then stays loaded.
        let library =
            unsafe { libc::dlopen(LIBRARY.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
        let find = |name: &CStr| -> Option<*mut c_void> {
            // The application first: it may be linked statically, or have a copy of the array's
            // pointer, which the library then uses, too.
            // SAFETY: a string.
            let symbol = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
            if !symbol.is_null() || library.is_null() {
                return (!symbol.is_null()).then_some(symbol);
            }
            // SAFETY: the handle from above, and a string.
            let symbol = unsafe { libc::dlsym(library, name.as_ptr()) };
            (!symbol.is_null()).then_some(symbol)
        };
        macro_rules! function {
            ($name:literal as $kind:ty) => {{
                let symbol = find($name)?;
                // SAFETY: the function of that name has this signature in all lines that are known,
                // but for the size of structs, which are made larger here.
                unsafe { std::mem::transmute::<*mut c_void, $kind>(symbol) }
            }};
        }
        Some(Self {
            id_by_name: function!(c"rte_dma_get_dev_id_by_name" as ByName),
            info_get: function!(c"rte_dma_info_get" as InfoGet),
            configure: function!(c"rte_dma_configure" as Configure),
            vchan_setup: function!(c"rte_dma_vchan_setup" as VchanSetup),
            start: function!(c"rte_dma_start" as ById),
            stop: function!(c"rte_dma_stop" as ById),
            objects: find(c"rte_dma_fp_objs")?.cast_const().cast(),
        })
    }
}
