//! A writer of SVG: shapes and text, no more than the charts need.

use std::fmt::Write;

/// A picture that is being drawn; its height is known when it is done.
pub(super) struct Svg {
    width: f64,
    body: String,
}

/// Where text lies relative to its place.
#[derive(Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// What text is for.
#[derive(Clone, Copy)]
pub(super) enum Style {
    Heading,
    Title,
    Label,
    Faint,
}

/// One theme for paper and one for the night: whoever shows the picture chooses, and may know neither.
const STYLE: &str = "\
.paper{fill:#fff}text{font:12px system-ui,-apple-system,'Segoe UI',sans-serif;fill:#1f2328}\
.heading{font-size:17px;font-weight:600}.title{font-size:13px;font-weight:600}.faint{fill:#59636e;font-size:11px}\
.rule{stroke:#d1d9e0;stroke-width:1}.whisker{stroke:#1f2328;stroke-width:1;opacity:.65}\
@media (prefers-color-scheme:dark){.paper{fill:#0d1117}text{fill:#f0f6fc}.faint{fill:#9198a1}\
.rule{stroke:#3d444d}.whisker{stroke:#f0f6fc}}";

impl Svg {
    pub(super) fn new(width: f64) -> Svg {
        Svg { width, body: String::new() }
    }

    pub(super) fn text(&mut self, x: f64, y: f64, anchor: Anchor, style: Style, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let class = match style {
            Style::Heading => "heading",
            Style::Title => "title",
            Style::Label => "label",
            Style::Faint => "faint",
        };
        self.push(format_args!(
            r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" class="{class}">{}</text>"#,
            escape(text)
        ));
    }

    pub(super) fn bar(&mut self, x: f64, y: f64, width: f64, height: f64, color: &str) {
        self.push(format_args!(
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" rx="2" fill="{color}"/>"#
        ));
    }

    /// A faint line of a grid or an axis.
    pub(super) fn rule(&mut self, from: (f64, f64), to: (f64, f64)) {
        self.line(from, to, "rule");
    }

    /// A thin line over a bar or a point, for the spread.
    pub(super) fn whisker(&mut self, from: (f64, f64), to: (f64, f64)) {
        self.line(from, to, "whisker");
    }

    fn line(&mut self, from: (f64, f64), to: (f64, f64), class: &str) {
        let ((x1, y1), (x2, y2)) = (from, to);
        self.push(format_args!(
            r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" class="{class}"/>"#
        ));
    }

    pub(super) fn curve(&mut self, points: &[(f64, f64)], color: &str) {
        let places: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        self.push(format_args!(
            r#"<polyline points="{}" fill="none" stroke="{color}" stroke-width="2" stroke-linejoin="round"/>"#,
            places.join(" ")
        ));
        for (x, y) in points {
            self.push(format_args!(r#"<circle cx="{x:.1}" cy="{y:.1}" r="3.2" fill="{color}"/>"#));
        }
    }

    fn push(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a String does not fail.
        let _ = writeln!(self.body, "{element}");
    }

    /// The document.
    pub(super) fn finish(self, height: f64) -> String {
        let Svg { width, body } = self;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
             height=\"{height:.0}\" role=\"img\">\n<style>{STYLE}</style>\n\
             <rect class=\"paper\" width=\"{width:.0}\" height=\"{height:.0}\" rx=\"8\"/>\n{body}</svg>\n"
        )
    }
}

/// Text as XML and HTML have it.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Round numbers from zero to `max` or just above it, about `count` of them.
pub(super) fn ticks(max: f64, count: usize) -> Vec<f64> {
    if max <= 0.0 {
        return vec![0.0, 1.0];
    }
    let rough = max / count.max(1) as f64;
    let power = 10_f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 2.5, 5.0, 10.0].map(|step| step * power).into_iter().find(|step| *step >= rough * 0.999);
    let step = step.unwrap_or(10.0 * power);
    let last = (max / step * 0.999).ceil() as usize;
    (0..=last).map(|index| index as f64 * step).collect()
}

/// A number on an axis: 250k, 1.5M.
pub(super) fn short(value: f64) -> String {
    let (scaled, unit) = match value {
        _ if value >= 1e6 => (value / 1e6, "M"),
        _ if value >= 1e3 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let text = format!("{scaled:.3}");
    format!("{}{unit}", text.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_reach_the_maximum() {
        assert_eq!(ticks(9.3, 5), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(ticks(230_000.0, 5), [0.0, 50_000.0, 100_000.0, 150_000.0, 200_000.0, 250_000.0]);
        assert_eq!(ticks(100.0, 4), [0.0, 25.0, 50.0, 75.0, 100.0]);
        assert_eq!(ticks(0.0, 5), [0.0, 1.0]);
    }

    #[test]
    fn axes_have_short_numbers() {
        for (value, shown) in [(0.0, "0"), (2.5, "2.5"), (250_000.0, "250k"), (1_500_000.0, "1.5M")] {
            assert_eq!(short(value), shown);
        }
    }

    #[test]
    fn text_is_escaped() {
        let mut svg = Svg::new(10.0);
        svg.text(1.0, 2.0, Anchor::End, Style::Label, "a<b & \"c\"");
        let text = svg.finish(20.0);
        assert!(
            text.contains(r#"text-anchor="end" class="label">a&lt;b &amp; &quot;c&quot;</text>"#),
            "{text}"
        );
    }
}
