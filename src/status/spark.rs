//! A row of numbers as a row of blocks. Pure.

const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// One block for each value, the greatest full; what is not known is a gap.
pub fn spark(values: impl Iterator<Item = Option<f64>> + Clone) -> String {
    let most = values.clone().flatten().fold(0.0, f64::max);
    let block = |value: f64| {
        let share = if most > 0.0 { value / most } else { 0.0 };
        BLOCKS[((share * 7.0).round() as usize).min(7)]
    };
    values.map(|value| value.map_or(' ', block)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greatest_value_is_a_full_block() {
        let spark = |values: &[Option<f64>]| spark(values.iter().copied());
        assert_eq!(spark(&[Some(0.0), Some(5.0), None, Some(10.0)]), "▁▅ █");
        assert_eq!(spark(&[Some(0.0), Some(0.0)]), "▁▁");
        assert_eq!(spark(&[]), "");
    }
}
