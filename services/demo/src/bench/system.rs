//! What the system says about memory and itself. Everything is optional: the figures are Linux's.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// The machine on which something was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The processor's name.
    pub processor: String,
    /// Threads that run at a time.
    pub cores: usize,
    /// Whether the instructions are there that matter to the kernels.
    pub features: Vec<String>,
    /// When the measurement began, UTC.
    pub date: String,
    /// Processes that ran or waited, mean of the last minute: before the measurement, which adds its own.
    pub load_before: Option<f64>,
}

/// Instructions that kernels choose between.
const FEATURES: [&str; 7] = ["aes", "vaes", "avx2", "avx512f", "avx512ifma", "amx_int8", "asimd"];

impl Machine {
    /// This machine now.
    pub fn now() -> Self {
        let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            line.split_once(':').map(|(_, value)| value.trim().to_owned())
        };
        let flags = field("flags").or_else(|| field("Features")).unwrap_or_default();
        let has = |feature: &&str| flags.split(' ').any(|flag| flag == *feature);
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Machine {
            processor: field("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            features: FEATURES.into_iter().filter(has).map(str::to_owned).collect(),
            date: concilium_rpc::time::moment(u64::try_from(since.as_millis()).unwrap_or_default()),
            load_before: load(),
        }
    }
}

fn load() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}

/// Bytes in a line such as `VmHWM:  1234 kB` of a file.
fn kilobytes(path: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let number: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    number.checked_mul(1024)
}

/// Bytes that can be taken without swapping.
pub(crate) fn free_memory() -> Option<u64> {
    kilobytes("/proc/meminfo", "MemAvailable")
}

/// The most memory in bytes that a process, or this one, has held at a time.
pub(crate) fn peak_memory(process: Option<u32>) -> Option<u64> {
    let process = process.map_or("self".to_owned(), |id| id.to_string());
    kilobytes(&format!("/proc/{process}/status"), "VmHWM")
}

/// Lets the peak of this process begin again at what it holds now, where the system allows it.
pub(crate) fn forget_peak_memory() {
    let _ = fs::write("/proc/self/clear_refs", "5");
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_system_tells_memory_and_itself() {
        let own = peak_memory(None).unwrap();
        assert!(own > 1 << 20 && own < 1 << 40, "{own}");
        assert_eq!(peak_memory(Some(u32::MAX)), None);
        assert!(free_memory().unwrap() > 1 << 20);
        let machine = Machine::now();
        assert!(
            machine.cores > 0 && !machine.processor.is_empty() && machine.date.ends_with("UTC"),
            "{machine:?}"
        );
    }
}
