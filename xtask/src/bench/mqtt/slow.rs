//! The same loads on the disk as it is, and with 5 ms more for every sync: whether bigger batches make up for it.

use super::brokers::{Brand, Broker};
use super::speed::{Load, Shape};
use crate::bench::report::{Report, Row, Sample, Style, Table, ms, thousands};

/// Who publishes to whom and the window: a few clients with much under way, so many that batches can grow, more, and one with
/// nothing to put into a batch.
const SHAPES: [(Shape, u16); 4] =
    [(Shape::Pairs(4), 100), (Shape::Pairs(100), 100), (Shape::Pairs(100), 1000), (Shape::Pairs(1), 1)];

const AS_IT_IS: &str = "as it is";
const SLOWER: &str = "5 ms slower";

/// What is measured, in turns so that both disks have the same neighbours: the broker, its load, which disk.
pub(super) fn runs(qos: &[u8], ahead: bool) -> Vec<(Broker, Load, &'static str)> {
    let mut runs = Vec::new();
    for (shape, window) in SHAPES {
        // QoS 0 waits for no disk.
        for &qos in qos.iter().filter(|qos| **qos > 0) {
            let load = Load { shape, window, qos, ahead };
            let plain = Brand::Postroad.plain();
            runs.push((plain, load, AS_IT_IS));
            runs.push((Broker { slow_disk: true, ..plain }, load, SLOWER));
        }
    }
    runs
}

/// What was measured, disk by disk.
pub(super) struct Slow(Report);

impl Slow {
    pub(super) fn new(style: Style) -> Self {
        Self(Report::new(style, String::new()))
    }

    pub(super) fn add(&mut self, load: Load, disk: &str, durability: &str, sample: Sample) {
        self.0.add(&load.name(), disk, durability, sample);
    }

    /// `None` if nothing was measured on both.
    pub(super) fn table(&self) -> Option<Table> {
        let both = |row: &Row| Some((row.median(), self.0.find(&row.load, SLOWER)?));
        let rows: Vec<Vec<String>> = (self.0.rows.iter().filter(|row| row.server == AS_IT_IS))
            .filter_map(|row| {
                let (plain, slow) = both(row)?;
                Some(vec![
                    row.load.clone(),
                    thousands(plain.rate),
                    thousands(slow.rate),
                    format!("{:.2}", slow.rate / plain.rate),
                    ms(plain.latency.p99),
                    ms(slow.latency.p99),
                ])
            })
            .collect();
        (!rows.is_empty()).then(|| Table {
            title: "postroad (journal.sync=fdatasync) on this disk, and when every sync takes 5 ms longer: the ratio \
                    says what bigger batches do not make up for."
                .into(),
            head: &[
                "load",
                "deliveries/s",
                "deliveries/s, syncs 5 ms slower",
                "ratio",
                "p99 ms at half load",
                "p99 ms at half load, syncs 5 ms slower",
            ],
            rows,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{AS_IT_IS, SLOWER, Slow, runs};
    use crate::bench::mqtt::STYLE;
    use crate::bench::report::{Faults, Percentiles, Sample};

    #[test]
    fn both_disks_of_a_load_are_one_line_with_their_ratio() {
        let runs = runs(&[0, 1, 2], false);
        assert_eq!(runs.len(), 16, "four shapes at QoS 1 and 2 on both");
        assert!(runs.iter().all(|(broker, _, disk)| broker.slow_disk == (*disk == SLOWER)));
        let mut slow = Slow::new(STYLE);
        assert!(slow.table().is_none());
        let load = runs[0].1;
        for (disk, rate, p99) in [(AS_IT_IS, 4000.0, 1.0), (SLOWER, 3000.0, 7.0)] {
            let latency = Percentiles { p50: 0.0, p99, p999: 0.0 };
            let faults = Faults::default();
            slow.add(load, disk, "", Sample { rate, cpu_us: 1.0, latency, delivery: None, faults });
        }
        let table = slow.table().unwrap();
        assert_eq!(table.rows, [["4:4, window 100, QoS 1", "4 000", "3 000", "0.75", "1.00", "7.00"]]);
        assert_eq!(table.head.len(), table.rows[0].len());
    }
}
