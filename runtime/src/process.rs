//! What the operating system knows of this process. Linux only; elsewhere nothing is told.

use std::path::Path;

/// Largest resident memory until now in KiB.
pub(crate) fn peak_memory_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Processor time in milliseconds of all threads that there are now.
pub(crate) fn cpu_ms() -> Option<f64> {
    let mut total = 0.0;
    for task in std::fs::read_dir("/proc/self/task").ok()? {
        total += schedstat(&task.ok()?.path().join("schedstat"))?;
    }
    Some(total)
}

/// Processor time of this thread in milliseconds.
pub(crate) fn thread_cpu_ms() -> Option<f64> {
    schedstat(Path::new("/proc/thread-self/schedstat"))
}

fn schedstat(path: &Path) -> Option<f64> {
    let text = std::fs::read_to_string(path).ok()?;
    let nanoseconds: u64 = text.split_whitespace().next()?.parse().ok()?;
    Some(nanoseconds as f64 / 1e6)
}

/// Gives memory that was freed back to the system, where the C library keeps it: what loading a model
/// needed for a moment is more than what running it does.
pub(crate) fn release_free_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        // SAFETY: glibc's function with its declared signature; it touches only free memory, from any thread.
        unsafe { malloc_trim(0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_in_use_survives_a_release() {
        let kept: Vec<Vec<usize>> = (0..200).map(|k| vec![k; 5_000]).collect();
        let freed: Vec<Vec<usize>> = (0..200).map(|k| vec![k; 5_000]).collect();
        drop(freed);
        release_free_memory();
        assert!(kept.iter().enumerate().all(|(k, values)| values.iter().all(|v| *v == k)));
    }
}
