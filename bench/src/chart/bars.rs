//! Bars: for each cell a block, in it a panel for each compared metric, in it a bar for each subject. Every panel has
//! its own scale, from zero: cells differ by orders of magnitude, subjects within a cell do not.

use super::Palette;
use super::svg::{Anchor, Style, Svg};
use crate::report::{Cell, Report, Row};
use crate::sample::Metric;
use crate::table::number;

const MARGIN: f64 = 24.0;
const HEADING: f64 = 34.0;
const NAME: f64 = 128.0;
const BAR: f64 = 190.0;
const VALUE: f64 = 86.0;
const GAP: f64 = 24.0;
const PANEL: f64 = NAME + BAR + VALUE;
const LINE: f64 = 20.0;
const THICKNESS: f64 = 13.0;
const TITLE: f64 = 44.0;

pub(super) fn draw(report: &Report, palette: &Palette) -> String {
    let panels = report.cells.iter().map(|cell| compared(cell).len()).max().unwrap_or(0).max(2);
    let mut svg = Svg::new(2.0 * MARGIN + panels as f64 * PANEL + (panels - 1) as f64 * GAP);
    let mut y = MARGIN + 14.0;
    svg.text(MARGIN, y, Anchor::Start, Style::Heading, &format!("{}: {}", report.bench, report.about));
    y += HEADING;
    for cell in &report.cells {
        svg.text(MARGIN, y, Anchor::Start, Style::Title, &cell.title);
        for (index, metric) in compared(cell).into_iter().enumerate() {
            let x = MARGIN + index as f64 * (PANEL + GAP);
            panel(&mut svg, (x, y + TITLE - 10.0), cell, metric, palette);
        }
        y += TITLE + cell.rows.len() as f64 * LINE + GAP;
    }
    svg.finish(y - GAP + MARGIN)
}

fn compared(cell: &Cell) -> Vec<&'static Metric> {
    cell.metrics().into_iter().filter(|metric| metric.compared).collect()
}

fn panel(svg: &mut Svg, (x, y): (f64, f64), cell: &Cell, metric: &Metric, palette: &Palette) {
    let zero = x + NAME;
    svg.text(zero, y - 8.0, Anchor::Start, Style::Faint, metric.title);
    let reach = |row: &Row| {
        row.median(metric).map_or(0.0, |median| median.value * (1.0 + median.spread.unwrap_or(0.0)))
    };
    let max = cell.rows.iter().map(reach).fold(f64::MIN_POSITIVE, f64::max);
    for (index, row) in cell.rows.iter().enumerate() {
        let top = y + index as f64 * LINE;
        let (middle, baseline) = (top + THICKNESS / 2.0, top + THICKNESS - 2.5);
        svg.text(zero - 8.0, baseline, Anchor::End, Style::Label, &row.name);
        let Some(median) = row.median(metric) else {
            let reason = if row.failure.is_some() { "failed" } else { "not measured" };
            svg.text(zero + 6.0, baseline, Anchor::Start, Style::Faint, reason);
            continue;
        };
        let at = |value: f64| zero + value / max * BAR;
        let spread = median.spread.unwrap_or(0.0);
        svg.bar(zero, top, (at(median.value) - zero).max(1.0), THICKNESS, palette.color(&row.name));
        let (low, high) = (at(median.value * (1.0 - spread)), at(median.value * (1.0 + spread)));
        if high - low > 1.0 {
            svg.whisker((low, middle), (high, middle));
            svg.whisker((low, middle - 3.0), (low, middle + 3.0));
            svg.whisker((high, middle - 3.0), (high, middle + 3.0));
        }
        svg.text(high + 7.0, baseline, Anchor::Start, Style::Label, &number(median.value, metric.digits));
    }
    svg.rule((zero, y - 3.0), (zero, y + cell.rows.len() as f64 * LINE - 3.0));
}
