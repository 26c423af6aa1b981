//! The process as the kernel sees it, read at each scrape from `/proc` (proc(5)); nothing where
//! there is none. The names are those that all Prometheus clients use.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// CPU time, memory, files, start.
#[derive(Debug)]
pub(super) struct Process;

/// What `/proc/self/stat` says.
struct Stat {
    cpu: Duration,
    resident_bytes: u64,
    /// Since the machine started.
    started: Duration,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut write = |name: &str, help: &str, metric: &dyn Erased| {
            let descriptor = encoder.encode_descriptor(name, help, None, metric.kind())?;
            metric.write(descriptor)
        };
        if let Some(stat) = Stat::read() {
            let seconds = ConstCounter::new(stat.cpu.as_secs_f64());
            write("process_cpu_seconds", "User and system time", &seconds)?;
            let resident = ConstGauge::new(stat.resident_bytes as f64);
            write(
                "process_resident_memory_bytes",
                "Resident memory",
                &resident,
            )?;
            if let Some(started) = started_at(stat.started) {
                let started = ConstGauge::new(started);
                write("process_start_time_seconds", "Start, since 1970", &started)?;
            }
        }
        if let Ok(files) = fs::read_dir("/proc/self/fd") {
            let files = ConstGauge::new(files.count() as f64);
            write("process_open_fds", "Open files", &files)?;
        }
        Ok(())
    }
}

impl Stat {
    fn read() -> Option<Self> {
        let text = fs::read_to_string("/proc/self/stat").ok()?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Option<Self> {
        // The second field is a name in parentheses, which may hold spaces.
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<u64> = rest
            .split_whitespace()
            .map(|field| field.parse().unwrap_or(0))
            .collect();
        // Numbers of proc(5), less the two fields before and one for counting from 0.
        let field = |number: usize| fields.get(number - 3).copied();
        let ticks = rustix::param::clock_ticks_per_second();
        let time = |ticks_taken: u64| Duration::from_secs_f64(ticks_taken as f64 / ticks as f64);
        Some(Self {
            cpu: time(field(14)? + field(15)?),
            started: time(field(22)?),
            resident_bytes: field(24)? * rustix::param::page_size() as u64,
        })
    }
}

/// Seconds since 1970.
fn started_at(since_boot: Duration) -> Option<f64> {
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    let uptime: f64 = uptime.split_whitespace().next()?.parse().ok()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    Some(now.as_secs_f64() - uptime + since_boot.as_secs_f64())
}

/// A metric whose type does not matter.
trait Erased {
    fn kind(&self) -> prometheus_client::metrics::MetricType;
    fn write(&self, encoder: prometheus_client::encoding::MetricEncoder<'_>) -> std::fmt::Result;
}

impl<M: EncodeMetric> Erased for M {
    fn kind(&self) -> prometheus_client::metrics::MetricType {
        self.metric_type()
    }

    fn write(&self, encoder: prometheus_client::encoding::MetricEncoder<'_>) -> std::fmt::Result {
        self.encode(encoder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_of_the_process_may_hold_anything() {
        let before = "1 (a) b (c) S 1 1 1 0 -1 0 0 0 0 0 ";
        let stat = format!("{before}150 50 0 0 20 0 1 0 300 1000 7 0");
        let stat = Stat::parse(&stat).expect("a stat");
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        assert_eq!(stat.cpu.as_secs_f64(), 200.0 / ticks);
        assert_eq!(stat.started.as_secs_f64(), 300.0 / ticks);
        assert_eq!(stat.resident_bytes, 7 * rustix::param::page_size() as u64);
    }
}
