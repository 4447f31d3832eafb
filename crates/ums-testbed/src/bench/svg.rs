//! Plots as SVG text. Pure.

use std::fmt::Write;

/// Size of a picture.
const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 540.0;
/// Where its axes are.
const LEFT: f64 = 90.0;
const RIGHT: f64 = 700.0;
const TOP: f64 = 60.0;
const BOTTOM: f64 = 470.0;

/// Colours that people with other eyes tell apart, too (Okabe and Ito).
const COLOURS: [&str; 8] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999",
];

/// A line through several points.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// What it is.
    pub name: String,
    /// Its values in the order of the labels, where there are any.
    pub values: Vec<Option<f64>>,
    /// Whether it is somebody else's, and dashed.
    pub dashed: bool,
}

/// Lines over labels, the values on a logarithmic scale.
pub fn lines(title: &str, axes: (&str, &str), labels: &[String], series: &[Series]) -> String {
    let values = series.iter().flat_map(|one| one.values.iter().flatten());
    let positive: Vec<f64> = values.copied().filter(|value| *value > 0.0).collect();
    let scale = Log::over(&positive);
    let mut text = begin(title, axes);
    for decade in scale.low..=scale.high {
        let value = 10_f64.powi(decade);
        let y = scale.y(value);
        let _ = writeln!(
            text,
            "<line x1='{LEFT}' x2='{RIGHT}' y1='{y:.1}' y2='{y:.1}' stroke='#ddd'/>\
             <text x='{}' y='{:.1}' text-anchor='end'>{value}</text>",
            LEFT - 8.0,
            y + 5.0
        );
    }
    let x = |at: usize| {
        let steps = labels.len().saturating_sub(1).max(1) as f64;
        LEFT + 20.0 + (RIGHT - LEFT - 40.0) * at as f64 / steps
    };
    for (at, label) in labels.iter().enumerate() {
        let label = escaped(label);
        let _ = writeln!(
            text,
            "<text x='{:.1}' y='{}' text-anchor='middle'>{label}</text>",
            x(at),
            BOTTOM + 22.0
        );
    }
    for (number, one) in series.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let points = one.values.iter().enumerate();
        let points = points.filter_map(|(at, value)| {
            let value = value.filter(|value| *value > 0.0)?;
            Some((x(at), scale.y(value)))
        });
        text += &line(one, colour, &points.collect::<Vec<_>>());
        text += &key(number, colour, &one.name);
    }
    text + "</svg>\n"
}

fn line(one: &Series, colour: &str, points: &[(f64, f64)]) -> String {
    let path: Vec<String> = points
        .iter()
        .map(|(x, y)| format!("{x:.1},{y:.1}"))
        .collect();
    let dash = if one.dashed {
        " stroke-dasharray='6 5'"
    } else {
        ""
    };
    let mut text = format!(
        "<polyline points='{}' fill='none' stroke='{colour}' stroke-width='2.5'{dash}/>\n",
        path.join(" ")
    );
    for (x, y) in points {
        let _ = writeln!(
            text,
            "<circle cx='{x:.1}' cy='{y:.1}' r='4' fill='{colour}'/>"
        );
    }
    text
}

/// A bar of several parts.
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    /// What it is.
    pub name: String,
    /// Its parts in the order of the names.
    pub parts: Vec<f64>,
}

/// Bars of parts, each part in its own colour, as far as there are some: no more than eight are told apart.
pub fn bars(title: &str, axes: (&str, &str), names: &[&str], bars: &[Bar]) -> String {
    let sum = |bar: &Bar| bar.parts.iter().sum::<f64>();
    let most = bars.iter().map(sum).fold(1.0, f64::max);
    let mut text = begin(title, axes);
    let y = |value: f64| BOTTOM - (BOTTOM - TOP) * value / most;
    for tenth in (0..=10).step_by(2) {
        let value = most * f64::from(tenth) / 10.0;
        let _ = writeln!(
            text,
            "<line x1='{LEFT}' x2='{RIGHT}' y1='{0:.1}' y2='{0:.1}' stroke='#ddd'/>\
             <text x='{1}' y='{2:.1}' text-anchor='end'>{value:.0}</text>",
            y(value),
            LEFT - 8.0,
            y(value) + 5.0
        );
    }
    let room = (RIGHT - LEFT) / bars.len().max(1) as f64;
    for (at, bar) in bars.iter().enumerate() {
        let left = LEFT + room * (at as f64 + 0.2);
        let mut below = 0.0;
        for (number, value) in bar.parts.iter().enumerate() {
            let (top, bottom) = (y(below + value), y(below));
            below += value;
            let _ = writeln!(
                text,
                "<rect x='{left:.1}' y='{top:.1}' width='{:.1}' height='{:.1}' fill='{}' \
                 stroke='white' stroke-width='0.5'/>",
                room * 0.6,
                bottom - top,
                COLOURS[number % COLOURS.len()]
            );
        }
        let _ = writeln!(
            text,
            "<text x='{:.1}' y='{}' text-anchor='middle'>{}: {below:.0}</text>",
            left + room * 0.3,
            BOTTOM + 22.0,
            escaped(&bar.name)
        );
    }
    for (number, name) in names.iter().enumerate() {
        text += &key(number, COLOURS[number % COLOURS.len()], name);
    }
    text + "</svg>\n"
}

fn begin(title: &str, (x, y): (&str, &str)) -> String {
    let middle = f64::midpoint(LEFT, RIGHT);
    let height = f64::midpoint(TOP, BOTTOM);
    format!(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' \
         font-family='sans-serif' font-size='14'>\n<rect width='{WIDTH}' height='{HEIGHT}' fill='white'/>\n\
         <text x='{LEFT}' y='32' font-size='20' font-weight='bold'>{}</text>\n\
         <text x='{middle}' y='{}' text-anchor='middle'>{}</text>\n\
         <text transform='translate(24 {height}) rotate(-90)' text-anchor='middle'>{}</text>\n\
         <polyline points='{LEFT},{TOP} {LEFT},{BOTTOM} {RIGHT},{BOTTOM}' fill='none' stroke='#444'/>\n",
        escaped(title),
        BOTTOM + 52.0,
        escaped(x),
        escaped(y)
    )
}

fn key(number: usize, colour: &str, name: &str) -> String {
    let y = TOP + 8.0 + 18.0 * number as f64;
    format!(
        "<rect x='{}' y='{:.1}' width='14' height='12' fill='{colour}'/>\
         <text x='{}' y='{:.1}' font-size='12'>{}</text>\n",
        RIGHT + 20.0,
        y - 10.0,
        RIGHT + 42.0,
        y,
        escaped(name)
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// A scale of whole decades.
struct Log {
    low: i32,
    high: i32,
}

impl Log {
    fn over(values: &[f64]) -> Self {
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(0.0, f64::max);
        if values.is_empty() {
            return Self { low: 0, high: 1 };
        }
        let low = least.log10().floor() as i32;
        Self {
            low,
            high: (most.log10().ceil() as i32).max(low + 1),
        }
    }

    fn y(&self, value: f64) -> f64 {
        let share = (value.log10() - f64::from(self.low)) / f64::from(self.high - self.low);
        BOTTOM - (BOTTOM - TOP) * share
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_decade_more_is_a_step_up() {
        let scale = Log::over(&[0.5, 20.0]);
        assert_eq!((scale.low, scale.high), (-1, 2));
        assert!((scale.y(0.1) - BOTTOM).abs() < 1e-6);
        assert!((scale.y(100.0) - TOP).abs() < 1e-6);
    }

    #[test]
    fn what_was_not_measured_is_not_drawn() {
        let series = Series {
            name: "a & b".to_owned(),
            values: vec![Some(1.0), None, Some(10.0)],
            dashed: true,
        };
        let labels = ["0", "1", "2"].map(str::to_owned);
        let text = lines("t", ("x", "y"), &labels, &[series]);
        assert_eq!(text.matches("<circle").count(), 2, "{text}");
        assert!(text.contains("a &amp; b") && text.contains("stroke-dasharray"));
    }

    #[test]
    fn a_bar_has_its_sum_beside_it() {
        let bar = Bar {
            name: "to b".to_owned(),
            parts: vec![10.0, 0.0, 30.0],
        };
        let text = bars("t", ("", "ms"), &["one", "two", "three"], &[bar]);
        assert!(text.contains("to b: 40"), "{text}");
        assert_eq!(text.matches("stroke='white'").count(), 3);
    }
}
