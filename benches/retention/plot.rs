//! Small line charts, one for each quantity, as one SVG.

use std::fmt::Write;

/// A chart: its title, and a line for each kind of table.
pub struct Chart {
    pub title: &'static str,
    /// Divides the values for the labels of the axis.
    pub unit: f64,
    /// Points of each line: minutes and value.
    pub lines: Vec<Vec<(f64, f64)>>,
}

const COLOURS: [&str; 2] = ["#2563eb", "#d97706"];
const WIDTH: f64 = 430.0;
const HEIGHT: f64 = 210.0;
/// Room for labels and title.
const LEFT: f64 = 56.0;
const ABOVE: f64 = 34.0;
const CELL_WIDTH: f64 = LEFT + WIDTH + 24.0;
const CELL_HEIGHT: f64 = ABOVE + HEIGHT + 34.0;
const HEAD: f64 = 58.0;

/// The charts, two in a row.
pub fn svg(title: &str, names: &[&str], charts: &[Chart]) -> String {
    let rows = charts.len().div_ceil(2) as f64;
    let (width, height) = (CELL_WIDTH * 2.0, HEAD + CELL_HEIGHT * rows);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"system-ui, sans-serif\" \
         font-size=\"12\" fill=\"#334155\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"{LEFT}\" y=\"26\" font-size=\"16\" font-weight=\"600\" fill=\"#0f172a\">{title}</text>\n"
    );
    for (i, (name, colour)) in names.iter().zip(COLOURS).enumerate() {
        let x = LEFT + 150.0 * i as f64;
        let _ = writeln!(
            svg,
            "<path d=\"M{x} 42h22\" stroke=\"{colour}\" stroke-width=\"2.5\"/><text x=\"{}\" y=\"46\">{name}</text>",
            x + 28.0
        );
    }
    for (i, chart) in charts.iter().enumerate() {
        let (x, y) = (
            CELL_WIDTH * (i % 2) as f64,
            HEAD + CELL_HEIGHT * (i / 2) as f64,
        );
        let _ = writeln!(
            svg,
            "<g transform=\"translate({} {})\">\n{}</g>",
            x + LEFT,
            y + ABOVE,
            panel(chart)
        );
    }
    svg + "</svg>\n"
}

fn panel(chart: &Chart) -> String {
    let points = || chart.lines.iter().flatten();
    let last = points().map(|point| point.0).fold(0.1, f64::max);
    let most = points()
        .map(|point| point.1 / chart.unit)
        .fold(0.0, f64::max);
    let step = nice(most.max(1e-9) / 4.0);
    let top = (most / step).ceil().max(1.0) * step;
    let (x, y) = (
        |minute: f64| minute / last * WIDTH,
        |value: f64| HEIGHT - value / top * HEIGHT,
    );
    let mut panel = format!(
        "<text y=\"-12\" font-weight=\"600\">{}</text>\n",
        chart.title
    );
    for tick in 0..=(top / step).round() as u32 {
        let value = f64::from(tick) * step;
        let digits = usize::from(step < 1.0);
        let _ = writeln!(
            panel,
            "<path d=\"M0 {0:.1}h{WIDTH}\" stroke=\"#e2e8f0\"/><text x=\"-8\" y=\"{1:.1}\" text-anchor=\"end\">{value:.digits$}</text>",
            y(value),
            y(value) + 4.0
        );
    }
    let step = nice(last / 6.0);
    for tick in 0..=(last / step).floor() as u32 {
        let minute = f64::from(tick) * step;
        let digits = usize::from(step < 1.0);
        let unit = if tick == 0 { " min" } else { "" };
        let _ = writeln!(
            panel,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{minute:.digits$}{unit}</text>",
            x(minute),
            HEIGHT + 18.0
        );
    }
    for (line, colour) in chart.lines.iter().zip(COLOURS) {
        let points: Vec<String> = line
            .iter()
            .map(|(minute, value)| format!("{:.1},{:.1}", x(*minute), y(value / chart.unit)))
            .collect();
        let _ = writeln!(
            panel,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.8\" stroke-linejoin=\"round\"/>",
            points.join(" ")
        );
    }
    panel
}

/// The next of 1, 2, 5, 10, 20, … that is not less.
fn nice(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * power);
    steps
        .into_iter()
        .find(|step| *step >= least * 0.999)
        .unwrap_or(10.0 * power)
}
