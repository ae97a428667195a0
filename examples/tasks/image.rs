//! Images as PPM files have them (netpbm's `P6`), and how to make them smaller.

use std::fmt;

/// Bytes of a pixel: red, green, blue.
const PIXEL: usize = 3;

/// What a PPM file says of itself, and its pixels.
pub(crate) struct Image<'a> {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) pixels: &'a [u8],
}

/// What follows the letters `P6` and comments in a PPM file, up to the pixels.
pub(crate) struct Header {
    pub(crate) width: usize,
    pub(crate) height: usize,
}

impl fmt::Display for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}\n255\n", self.width, self.height)
    }
}

impl Image<'_> {
    pub(crate) fn parse(file: &[u8]) -> Result<Image<'_>, &'static str> {
        let mut rest = file.strip_prefix(b"P6").ok_or("a PPM file begins with P6")?;
        let mut number = || {
            rest = rest.trim_ascii_start();
            while rest.starts_with(b"#") {
                let line = rest.iter().take_while(|byte| **byte != b'\n').count();
                rest = rest[line..].trim_ascii_start();
            }
            let (digits, after) = rest.split_at(rest.iter().take_while(|byte| byte.is_ascii_digit()).count());
            rest = after;
            std::str::from_utf8(digits).ok()?.parse::<usize>().ok().filter(|number| *number > 0)
        };
        let (Some(width), Some(height), Some(255)) = (number(), number(), number()) else {
            return Err("P6 is followed by width, height and 255");
        };
        let pixels = rest.get(1..).unwrap_or_default();
        match width.checked_mul(height).and_then(|count| count.checked_mul(PIXEL)) {
            Some(bytes) if bytes == pixels.len() => Ok(Image { width, height, pixels }),
            _ => Err("there are not as many pixels as width and height say"),
        }
    }

    /// Parts of so many rows, the last one of what is left.
    pub(crate) fn strips(&self, rows: usize) -> impl Iterator<Item = &[u8]> {
        self.pixels.chunks(rows * self.width * PIXEL)
    }
}

/// Makes one pixel, their average, of each square of `factor` times `factor`; at the edges, of what there is of it.
pub(crate) fn shrink(pixels: &[u8], width: usize, factor: usize) -> Vec<u8> {
    let row = width * PIXEL;
    let squares = pixels.chunks(row * factor).flat_map(|rows| {
        let lefts = (0..row).step_by(factor * PIXEL);
        lefts.map(move |left| (rows, left..row.min(left + factor * PIXEL)))
    });
    let averages = squares.flat_map(|(rows, columns)| {
        let (mut sums, mut count) = ([0; PIXEL], 0);
        for pixel in rows.chunks_exact(row).flat_map(|row| row[columns.clone()].as_chunks::<PIXEL>().0) {
            count += 1;
            for (sum, value) in sums.iter_mut().zip(pixel) {
                *sum += u64::from(*value);
            }
        }
        sums.map(|sum| (sum / count.max(1)) as u8)
    });
    averages.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_has_comments_and_any_space() {
        let image = Image::parse(b"P6# one\n#\n 2\t\r\n# 3 3\n1 255\nabcdef").unwrap();
        assert_eq!((image.width, image.height, image.pixels), (2, 1, &b"abcdef"[..]));
        for wrong in [
            &b""[..],
            b"P5 1 1 255\nabc",
            b"P6",
            b"P6 1 1 #",
            b"P6 1 1 65535\nabcdef",
            b"P6 0 1 255\n",
            b"P6 1 1 255",
            b"P6 1 1 255\nab",
            b"P6 1 1 255\nabcd",
            b"P6 18446744073709551615 18446744073709551615 255\nabc",
        ] {
            assert!(Image::parse(wrong).is_err(), "{:?}", wrong.escape_ascii().to_string());
        }
    }

    #[test]
    fn a_pixel_is_the_average_of_its_square() {
        let rows = [[10, 20, 99], [30, 40, 101], [7, 7, 7]];
        let pixels: Vec<u8> = rows.as_flattened().iter().flat_map(|grey| [*grey, *grey / 2, 0]).collect();
        let grey: Vec<u8> = shrink(&pixels, 3, 2).chunks(PIXEL).map(|pixel| pixel[0]).collect();
        assert_eq!(grey, [25, 100, 7, 7]);
        assert_eq!(shrink(&pixels, 3, 1), pixels);
        assert_eq!(shrink(&pixels, 3, 9).len(), PIXEL);
    }

    #[test]
    fn strips_by_themselves_make_the_whole() {
        let (width, height, factor) = (13, 17, 3);
        let pixels: Vec<u8> = (0..width * height * PIXEL).map(|index| (index * index) as u8).collect();
        let image = Image { width, height, pixels: &pixels };
        let parts: Vec<u8> =
            image.strips(2 * factor).flat_map(|strip| shrink(strip, width, factor)).collect();
        assert_eq!(parts, shrink(&pixels, width, factor));
        assert_eq!(parts.len(), width.div_ceil(factor) * height.div_ceil(factor) * PIXEL);
    }
}
