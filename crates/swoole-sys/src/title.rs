//! What `ps` shows for this process.
//!
//! The kernel shows the memory where it put the arguments at start, whatever is there now. With glibc, this
//! module moves the arguments and the environment elsewhere before `main`, and owns that memory from then
//! on: [`std::env::args`] and [`std::env::vars`] stay right, and a title may be as long as both were
//! together. (`/proc/PID/environ`, which reads the same memory, shows the title's remains.) With another
//! libc, a title is the short name only.

use std::ffi::CString;
use std::sync::{Mutex, PoisonError};

/// The memory of the arguments and the environment, once they have moved out.
static AREA: Mutex<Option<&'static mut [u8]>> = Mutex::new(None);

/// The kernel looks no further than one page for a title that is longer than the arguments were.
const TITLE_BYTES_MAX: usize = 4095;

/// The kernel's `TASK_COMM_LEN`, less the NUL.
const NAME_BYTES_MAX: usize = 15;

/// Sets the title of this process, which `ps -f` and `top -c` show, and the short name of the calling thread
/// (`PR_SET_NAME`), which `ps`, `top` and `pkill` use.
///
/// The title is cut at the first NUL and where its room ends, the short name after 15 bytes.
///
/// # Errors
///
/// None in practice.
pub fn set(title: &str) -> rustix::io::Result<()> {
    let title = title.split('\0').next().unwrap_or_default();
    if let Some(area) = AREA.lock().unwrap_or_else(PoisonError::into_inner).as_deref_mut() {
        let title = cut(title, TITLE_BYTES_MAX.min(area.len() - 1));
        area[..title.len()].copy_from_slice(title.as_bytes());
        area[title.len()..].fill(0);
    }
    let name = CString::new(cut(title, NAME_BYTES_MAX)).map_err(|_| rustix::io::Errno::INVAL)?;
    rustix::thread::set_name(&name)
}

/// The longest beginning of `text` that has at most `bytes_max` bytes and ends between two characters.
fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

#[cfg(target_env = "gnu")]
mod capture {
    use std::ffi::{CStr, c_char, c_int};
    use std::sync::PoisonError;

    /// glibc calls what stands in this section before `main`, with the arguments of `main`.
    #[used]
    // SAFETY: the section holds pointers to functions of exactly this type, by glibc's convention.
    #[unsafe(link_section = ".init_array")]
    static TAKE_AREA: unsafe extern "C" fn(c_int, *mut *mut c_char, *mut *mut c_char) = take_area;

    /// Moves the strings of `argv` and `envp` to the heap and keeps the memory where they stood.
    ///
    /// # Safety
    ///
    /// `argv` and `envp` are the arrays that the kernel made for this process, and no other thread exists.
    unsafe extern "C" fn take_area(_argc: c_int, argv: *mut *mut c_char, envp: *mut *mut c_char) {
        // SAFETY: passed on from this function's own contract.
        let area = unsafe {
            let mut area = (std::ptr::null_mut::<c_char>(), 0);
            move_strings(argv, &mut area);
            move_strings(envp, &mut area);
            area
        };
        if area.1 == 0 {
            return;
        }
        // SAFETY: `move_strings` counted bytes of adjacent strings, writable memory of the initial stack
        // that lives as long as the process and that no pointer of `argv` and `envp` leads to any more.
        let bytes = unsafe { std::slice::from_raw_parts_mut(area.0.cast(), area.1) };
        *super::AREA.lock().unwrap_or_else(PoisonError::into_inner) = Some(bytes);
    }

    /// Replaces the strings of a null-terminated array by copies, as long as each begins where the one
    /// before ends, and extends `area` (start, length) by them. The first that stands elsewhere ends the
    /// walk: somebody has replaced it before us.
    ///
    /// # Safety
    ///
    /// `strings` is null or an array of writable C strings that ends with a null, and nobody else reads it.
    unsafe fn move_strings(strings: *mut *mut c_char, area: &mut (*mut c_char, usize)) {
        if strings.is_null() {
            return;
        }
        let mut slot = strings;
        // SAFETY: the walk ends at the null that ends the array, so it reads and writes inside it. Each
        // entry is a C string; its copy is never freed, as the array lives until the process ends.
        unsafe {
            while !(*slot).is_null() {
                let string = *slot;
                if area.1 == 0 {
                    area.0 = string;
                } else if string != area.0.add(area.1) {
                    return;
                }
                let copy = CStr::from_ptr(string).to_owned();
                area.1 += copy.as_bytes_with_nul().len();
                *slot = copy.into_raw();
                slot = slot.add(1);
            }
        }
    }
}
