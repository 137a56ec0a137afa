//! The metrics of the process, under the names that the clients of Prometheus share.
//!
//! They are read from the kernel here. The feature `process` of the crate prometheus would bring the crate procfs, which parses all of
//! `/proc`, for these six numbers.

use std::fs;

use nix::sys::resource::{Resource, getrlimit};
use nix::time::{ClockId, clock_gettime};
use prometheus::{Counter, Gauge, IntGaugeVec};

use super::descriptions::{Description, PROCESS_CPU, PROCESS_MAX_FDS, PROCESS_OPEN_FDS, PROCESS_RESIDENT, PROCESS_START, PROCESS_VIRTUAL};
use super::register::Registrar;

/// The clock ticks per second in `/proc/PID/stat` (`USER_HZ`), on all architectures that rolegate is built for.
const TICKS_PER_SECOND: f64 = 100.0;
/// The position of `starttime` among the fields of `/proc/PID/stat` after the name of the program (proc_pid_stat(5)).
const START_TIME: usize = 19;

#[derive(Debug)]
pub(super) struct ProcessMetrics {
    cpu: Counter,
    // Without a value, these have no series.
    resident: IntGaugeVec,
    virtual_memory: IntGaugeVec,
    open_fds: IntGaugeVec,
    max_fds: IntGaugeVec,
}

impl ProcessMetrics {
    pub(super) fn new(register: &Registrar) -> Self {
        let start: Gauge = register.add(Gauge::new(PROCESS_START.name, PROCESS_START.help));
        start.set(started_at().unwrap_or_default());
        let gauge = |description: &Description| register.gauges(description);
        Self {
            cpu: register.add(Counter::new(PROCESS_CPU.name, PROCESS_CPU.help)),
            resident: gauge(&PROCESS_RESIDENT),
            virtual_memory: gauge(&PROCESS_VIRTUAL),
            open_fds: gauge(&PROCESS_OPEN_FDS),
            max_fds: gauge(&PROCESS_MAX_FDS),
        }
    }

    /// Updates the values for a scrape.
    pub(super) fn refresh(&self) {
        if let Ok(used) = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID) {
            let seconds = used.tv_sec() as f64 + used.tv_nsec() as f64 / 1e9;
            self.cpu.inc_by((seconds - self.cpu.get()).max(0.0));
        }
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        set(&self.resident, bytes_of(&status, "VmRSS:"));
        set(&self.virtual_memory, bytes_of(&status, "VmSize:"));
        // The directory that is read is open meanwhile.
        set(&self.open_fds, fs::read_dir("/proc/self/fd").ok().map(|open| open.count().saturating_sub(1) as u64));
        set(&self.max_fds, getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft));
    }
}

fn set(gauge: &IntGaugeVec, value: Option<u64>) {
    gauge.reset();
    if let Some(value) = value {
        gauge.with_label_values::<&str>(&[]).set(i64::try_from(value).unwrap_or(i64::MAX));
    }
}

/// Returns an amount of memory in `/proc/PID/status`, which has it in KiB.
fn bytes_of(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Returns when the process started, in seconds since 1970.
fn started_at() -> Option<f64> {
    let ticks = start_ticks(&fs::read_to_string("/proc/self/stat").ok()?)?;
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let booted = stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse::<f64>().ok()?;
    Some(booted + ticks / TICKS_PER_SECOND)
}

/// Returns the start of a process in clock ticks since boot. The name of the program, in parentheses, may contain anything.
fn start_ticks(stat: &str) -> Option<f64> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(START_TIME)?.parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test says loudly what failed")]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::metrics::Metrics;

    fn value(metrics: &Metrics, name: &str) -> f64 {
        let text = String::from_utf8(metrics.render()).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().unwrap()
    }

    #[test]
    fn the_values_are_those_of_this_process() {
        let metrics = Metrics::new();
        let now = Clock::system().now().as_second() as f64;
        let started = value(&metrics, "process_start_time_seconds");
        assert!(started <= now + 1.0 && started > now - 24.0 * 3600.0, "{started}, now {now}");
        let (resident, virtual_memory) =
            (value(&metrics, "process_resident_memory_bytes"), value(&metrics, "process_virtual_memory_bytes"));
        assert!(resident > 1e6 && resident < virtual_memory, "{resident} of {virtual_memory}");
        let held: Vec<_> = (0..100).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        let open = value(&metrics, "process_open_fds");
        assert!(open >= 100.0 && open <= value(&metrics, "process_max_fds"), "{open}");
        drop(held);
        let before = value(&metrics, "process_cpu_seconds_total");
        let mut sum = 0_u64;
        while value(&metrics, "process_cpu_seconds_total") <= before {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(before > 0.0);
    }

    #[test]
    fn odd_contents_of_proc_give_no_value() {
        assert_eq!(bytes_of("VmPeak:\t  9 kB\nVmRSS:\t  12 kB\n", "VmRSS:"), Some(12 * 1024));
        for odd in ["", "VmRSS:", "VmRSS: 12", "VmRSS: -1 kB", "VmRSS: 18446744073709551615 kB"] {
            assert_eq!(bytes_of(odd, "VmRSS:"), None, "{odd:?}");
        }
        let stat = "7 (a) (b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20";
        assert_eq!(start_ticks(stat), Some(4242.0));
        assert_eq!(start_ticks("7 (a"), None);
        assert_eq!(start_ticks("7 (a) S 1"), None);
    }
}
