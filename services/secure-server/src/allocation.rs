//! Lets the system's allocator keep memory that a batch gives back.
//!
//! The numbers of a batch are mebibytes that one step writes and the next one reads and gives back. By default
//! the allocator returns each of them to the system, so that every step pays a page fault for every page it
//! writes. docs/performance-parts.md has the measurement, also of another allocator.

/// Memory at the end of a heap that stays there, in bytes: more than a batch ever gives back.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT_BYTES: libc::c_int = 1 << 30;

/// Least size of what gets pages of its own, which are returned when it is given back: the most that the
/// allocator takes.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const OWN_PAGES_BYTES: libc::c_int = 32 << 20;

/// Variables by which an operator may have set the allocator up: then that counts.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const OWN_SETTINGS: [&str; 3] = ["GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"];

/// Sets the allocator up, if it is the one of glibc.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn keep_memory() {
    if OWN_SETTINGS.iter().any(|name| std::env::var_os(name).is_some()) {
        return;
    }
    for (parameter, value) in
        [(libc::M_TRIM_THRESHOLD, KEPT_BYTES), (libc::M_MMAP_THRESHOLD, OWN_PAGES_BYTES)]
    {
        // SAFETY: `mallopt` takes any two numbers, at any time and in any thread, and changes only when memory
        // is asked for and returned.
        #[allow(unsafe_code)]
        let taken = unsafe { libc::mallopt(parameter, value) };
        if taken == 0 {
            tracing::debug!(parameter, value, "the allocator does not take a setting");
        }
    }
}

/// Other allocators are left as they are.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn keep_memory() {}
