//! Commands of the telemetry socket, answered on a thread of EAL's.

use core::ffi::{CStr, c_char, c_int};
use core::marker::PhantomData;
use core::ptr::NonNull;
use std::ffi::CString;

use super::sys::{
    RTE_TEL_STRING_VAL, rte_tel_data, rte_tel_data_add_array_string,
    rte_tel_data_add_dict_container, rte_tel_data_add_dict_string, rte_tel_data_alloc,
    rte_tel_data_free, rte_tel_data_start_array, rte_tel_data_start_dict,
    rte_telemetry_register_cmd,
};

/// A command and its answer, which is a dictionary.
pub trait Command {
    /// Its path, such as `/driver/list`.
    const NAME: &'static CStr;
    /// One line for `/help`.
    const HELP: &'static CStr;

    /// Answers; `parameters` is what stands behind the first comma. `None`: there is no such thing,
    /// and the asker gets null. Must not panic.
    fn answer(parameters: &str, answer: &mut Dictionary<'_>) -> Option<()>;
}

/// Makes a command known; false when its name is taken.
pub fn register<C: Command>() -> bool {
    // SAFETY: two strings that EAL copies, and a function for as long as the library is loaded; a
    // driver is never unloaded.
    unsafe { rte_telemetry_register_cmd(C::NAME.as_ptr(), Some(run::<C>), C::HELP.as_ptr()) == 0 }
}

/// # Safety
///
/// For EAL only: `parameters` is null or a string, `answer` an empty answer.
unsafe extern "C" fn run<C: Command>(
    _command: *const c_char,
    parameters: *const c_char,
    answer: *mut rte_tel_data,
) -> c_int {
    let parameters = match parameters.is_null() {
        true => c"",
        // SAFETY: a string (caller) that stays as it is during the call.
        false => unsafe { CStr::from_ptr(parameters) },
    };
    let (Ok(parameters), Some(answer)) = (parameters.to_str(), NonNull::new(answer)) else {
        return -libc::EINVAL;
    };
    // SAFETY: EAL's, empty and ours during the call.
    unsafe { rte_tel_data_start_dict(answer.as_ptr()) };
    let mut answer = Dictionary(answer, PhantomData);
    match C::answer(parameters, &mut answer) {
        Some(()) => 0,
        None => -libc::EINVAL,
    }
}

/// A dictionary that is being filled. What does not fit is left out: 256 entries, values of 127
/// bytes.
pub struct Dictionary<'a>(NonNull<rte_tel_data>, PhantomData<&'a mut rte_tel_data>);

/// Keys are checked by EAL for odd characters; ours have none.
impl Dictionary<'_> {
    /// Adds a text.
    pub fn text(&mut self, key: &CStr, value: &str) {
        let value = CString::new(value).unwrap_or_default();
        // SAFETY: a dictionary (invariant), and strings that are copied.
        unsafe { rte_tel_data_add_dict_string(self.0.as_ptr(), key.as_ptr(), value.as_ptr()) };
    }

    /// Adds a number.
    pub fn number(&mut self, key: &CStr, value: impl Into<u64>) {
        #[cfg(dpdk_22_11)]
        use super::sys::rte_tel_data_add_dict_u64 as add;
        #[cfg(not(dpdk_22_11))]
        use super::sys::rte_tel_data_add_dict_uint as add;
        // SAFETY: a dictionary (invariant), and a string that is copied.
        unsafe { add(self.0.as_ptr(), key.as_ptr(), value.into()) };
    }

    /// Adds a list of texts.
    pub fn texts<'t>(&mut self, key: &CStr, values: impl IntoIterator<Item = &'t str>) {
        let Some(list) = Container::texts() else {
            return;
        };
        for value in values {
            let value = CString::new(value).unwrap_or_default();
            // SAFETY: an array of strings, made above; the string is copied.
            unsafe { rte_tel_data_add_array_string(list.as_ptr(), value.as_ptr()) };
        }
        self.put(key, list);
    }

    /// Adds a dictionary. It holds texts and numbers only: 22.11 shows nothing below that.
    pub fn dictionary(&mut self, key: &CStr, fill: impl FnOnce(&mut Dictionary<'_>)) {
        let Some(inner) = Container::dictionary() else {
            return;
        };
        fill(&mut Dictionary(inner.0, PhantomData));
        self.put(key, inner);
    }

    fn put(&mut self, key: &CStr, value: Container) {
        let (own, inner) = (self.0.as_ptr(), value.as_ptr());
        // SAFETY: a dictionary (invariant), a string that is copied, and a container of ours.
        let added = unsafe { rte_tel_data_add_dict_container(own, key.as_ptr(), inner, 0) };
        value.given(added);
    }
}

/// A list or dictionary that is not part of an answer yet.
struct Container(NonNull<rte_tel_data>);

impl Container {
    fn new() -> Option<Self> {
        // SAFETY: no condition.
        NonNull::new(unsafe { rte_tel_data_alloc() }).map(Self)
    }

    fn texts() -> Option<Self> {
        let new = Self::new()?;
        // SAFETY: fresh from EAL.
        unsafe { rte_tel_data_start_array(new.as_ptr(), RTE_TEL_STRING_VAL) };
        Some(new)
    }

    fn dictionary() -> Option<Self> {
        let new = Self::new()?;
        // SAFETY: fresh from EAL.
        unsafe { rte_tel_data_start_dict(new.as_ptr()) };
        Some(new)
    }

    fn as_ptr(&self) -> *mut rte_tel_data {
        self.0.as_ptr()
    }

    /// It was added to an answer, which frees it with itself, unless that had no room.
    fn given(self, added: c_int) {
        if added == 0 {
            std::mem::forget(self);
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // SAFETY: from EAL's allocator, and part of nothing.
        unsafe { rte_tel_data_free(self.as_ptr()) };
    }
}
