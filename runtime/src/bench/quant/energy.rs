//! Energy of a stretch of time, where the platform tells it: counters of processor packages
//! (RAPL), or the supply's power monitor (INA3221 of Jetson boards, what `tegrastats` prints).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Time between two looks at a power monitor, which averages over longer itself.
const EVERY: Duration = Duration::from_millis(20);

/// Rails that feed the whole module, as boards call them.
const SUPPLY: [&str; 3] = ["VDD_IN", "SYS5V", "POM_5V_IN"];

/// A running measurement.
pub enum Meter {
    /// Counters of microjoules, with what they were and where they start again.
    Counters(Vec<Counter>),
    /// A thread that sums power over time.
    Monitor { stop: Arc<AtomicBool>, sum: JoinHandle<Option<f64>> },
}

/// One counter.
pub struct Counter {
    file: PathBuf,
    before: u64,
    range: u64,
}

impl Meter {
    /// Starts measuring with what `sysfs` (`/sys`) offers, if anything.
    pub fn start(sysfs: &Path) -> Option<Self> {
        let counters = counters(sysfs);
        if !counters.is_empty() {
            return Some(Self::Counters(counters));
        }
        let rail = supply(sysfs)?;
        let stop = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&stop);
        let sum = std::thread::spawn(move || {
            let (mut joules, mut last, mut power) = (0.0, Instant::now(), rail.watts()?);
            while !until.load(Ordering::Relaxed) {
                std::thread::sleep(EVERY);
                let (now, next) = (Instant::now(), rail.watts()?);
                joules += (power + next) / 2.0 * (now - last).as_secs_f64();
                (last, power) = (now, next);
            }
            Some(joules)
        });
        Some(Self::Monitor { stop, sum })
    }

    /// Joules since the start; `None` where a reading failed on the way.
    pub fn stop(self) -> Option<f64> {
        match self {
            Self::Counters(counters) => counters.iter().map(Counter::joules).sum(),
            Self::Monitor { stop, sum } => {
                stop.store(true, Ordering::Relaxed);
                sum.join().ok()?
            }
        }
    }
}

impl Counter {
    fn joules(&self) -> Option<f64> {
        let now = number(&self.file)?;
        // The counter starts again at zero once it has reached its range.
        let spent = match now.checked_sub(self.before) {
            Some(spent) => spent,
            None => now + self.range.checked_sub(self.before)?,
        };
        Some(spent as f64 / 1e6)
    }
}

fn number(file: &Path) -> Option<u64> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// Counters of processor packages that may be read.
fn counters(sysfs: &Path) -> Vec<Counter> {
    let Ok(entries) = std::fs::read_dir(sysfs.join("class/powercap")) else { return Vec::new() };
    let counter = |entry: std::fs::DirEntry| {
        // Packages are `intel-rapl:N`; their parts have one more colon.
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("intel-rapl:") || name.matches(':').count() != 1 {
            return None;
        }
        let file = entry.path().join("energy_uj");
        let range = number(&entry.path().join("max_energy_range_uj"))?;
        Some(Counter { before: number(&file)?, file, range })
    };
    entries.flatten().filter_map(counter).collect()
}

/// One channel of a power monitor.
struct Rail {
    millivolts: PathBuf,
    milliamperes: PathBuf,
}

impl Rail {
    fn watts(&self) -> Option<f64> {
        Some(number(&self.millivolts)? as f64 * number(&self.milliamperes)? as f64 / 1e6)
    }
}

/// The channel of the whole module's supply.
fn supply(sysfs: &Path) -> Option<Rail> {
    for entry in std::fs::read_dir(sysfs.join("class/hwmon")).ok()?.flatten() {
        let folder = entry.path();
        let text = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_default();
        if text("name").trim() != "ina3221" {
            continue;
        }
        for channel in 1..=3 {
            if SUPPLY.contains(&text(&format!("in{channel}_label")).trim()) {
                return Some(Rail {
                    millivolts: folder.join(format!("in{channel}_input")),
                    milliamperes: folder.join(format!("curr{channel}_input")),
                });
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(root: &Path, name: &str, text: &str) {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn nothing_is_guessed() {
        let sysfs = tempfile::tempdir().unwrap();
        assert!(Meter::start(sysfs.path()).is_none());
    }

    #[test]
    fn counters_are_added_and_may_start_again() {
        let sysfs = tempfile::tempdir().unwrap();
        let root = sysfs.path();
        for (package, before) in [("intel-rapl:0", "1000000"), ("intel-rapl:1", "9000000")] {
            put(root, &format!("class/powercap/{package}/energy_uj"), before);
            put(root, &format!("class/powercap/{package}/max_energy_range_uj"), "10000000");
        }
        // A part of a package is counted with it already.
        put(root, "class/powercap/intel-rapl:0:0/energy_uj", "5");
        let meter = Meter::start(root).unwrap();
        put(root, "class/powercap/intel-rapl:0/energy_uj", "3500000\n");
        put(root, "class/powercap/intel-rapl:1/energy_uj", "500000");
        // 2.5 J, and 1 J to the end of the range with 0.5 J after it.
        assert!((meter.stop().unwrap() - 4.0).abs() < 1e-9);
    }

    #[test]
    fn a_monitor_is_summed_over_time() {
        let sysfs = tempfile::tempdir().unwrap();
        let root = sysfs.path();
        for (name, text) in [
            ("name", "ina3221\n"),
            ("in1_label", "VDD_CPU_GPU_CV"),
            ("in2_label", "VDD_IN"),
            ("in2_input", "5000"),
            ("curr2_input", "2000"),
        ] {
            put(root, &format!("class/hwmon/hwmon3/{name}"), text);
        }
        let (start, meter) = (Instant::now(), Meter::start(root).unwrap());
        std::thread::sleep(Duration::from_millis(50));
        let joules = meter.stop().unwrap();
        // 10 W for 50 ms or a little longer.
        let most = 10.0 * start.elapsed().as_secs_f64();
        assert!(joules > 0.3 && joules <= most, "{joules} of {most}");
    }
}
