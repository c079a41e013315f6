//! Images out of requests: from base64 to pixels, the right way up.
//!
//! They are hostile input: an image is measured before it is decoded, and a few bytes never become more pixels than
//! [`MOST_PIXELS`]. It fetches nothing, and knows no model.

use std::io::Cursor;

use base64::{Engine, prelude::BASE64_STANDARD};
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbaImage};

/// The most pixels of one request's images together; each takes 4 bytes.
const MOST_PIXELS: u64 = 1 << 25;

/// The longest side of an image, in pixels.
const LONGEST_SIDE: u32 = 1 << 14;

/// An image, decoded.
#[derive(Clone)]
pub struct Picture(RgbaImage);

/// Decodes the images of one request from their base64; an error says which one is faulty, and why.
pub fn decode<'a>(images: impl Iterator<Item = &'a str>) -> Result<Vec<Picture>, (usize, String)> {
    let mut left = MOST_PIXELS;
    let mut pictures = Vec::new();
    for (i, data) in images.enumerate() {
        let picture = Picture::decode(data, left).map_err(|why| (i, why))?;
        left -= u64::from(picture.0.width()) * u64::from(picture.0.height());
        pictures.push(picture);
    }
    Ok(pictures)
}

impl Picture {
    fn decode(data: &str, most: u64) -> Result<Self, String> {
        let bytes = BASE64_STANDARD
            .decode(data)
            .map_err(|error| format!("is no base64 ({error}); send the image's bytes in base64"))?;
        let broken = |error: image::ImageError| format!("is a broken image ({error}); send it again");
        let mut reader = ImageReader::new(Cursor::new(bytes))
            .with_guessed_format()
            .map_err(|error| broken(error.into()))?;
        let known = [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Gif];
        if !reader.format().is_some_and(|format| known.contains(&format)) {
            return Err("is no PNG, JPEG, WebP or GIF; send it as one of these".to_owned());
        }
        let mut limits = Limits::default();
        limits.max_image_width = Some(LONGEST_SIDE);
        limits.max_image_height = Some(LONGEST_SIDE);
        reader.limits(limits);
        let mut decoder = reader.into_decoder().map_err(broken)?;
        let (width, height) = decoder.dimensions();
        if u64::from(width) * u64::from(height) > most {
            return Err(format!(
                "has {width} × {height} pixels, and the images of one request may have {MOST_PIXELS} together; \
                 send it smaller"
            ));
        }
        let orientation = decoder.orientation().map_err(broken)?;
        let mut image = DynamicImage::from_decoder(decoder).map_err(broken)?;
        image.apply_orientation(orientation);
        let mut image = image.into_rgba8();
        // The engine remembers what it saw by the bytes of an image, and forgets its shape: so the shape goes into the
        // alpha, which no model sees.
        let shape = image
            .width()
            .to_le_bytes()
            .into_iter()
            .chain(std::iter::repeat(u8::MAX));
        image
            .pixels_mut()
            .zip(shape)
            .for_each(|(pixel, alpha)| pixel.0[3] = alpha);
        Ok(Self(image))
    }

    /// Width and height in pixels.
    pub fn size(&self) -> (u32, u32) {
        self.0.dimensions()
    }

    /// The pixels, as the engine takes them.
    pub fn to_image(&self) -> DynamicImage {
        self.0.clone().into()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn encoded(image: &RgbaImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Vec::new();
        let image = DynamicImage::from(image.clone()).into_rgb8();
        image.write_to(&mut Cursor::new(&mut bytes), format).unwrap();
        bytes
    }

    fn picture(bytes: &[u8]) -> Result<Picture, String> {
        decode([BASE64_STANDARD.encode(bytes).as_str()].into_iter())
            .map(|mut pictures| pictures.remove(0))
            .map_err(|(_, why)| why)
    }

    fn halves() -> RgbaImage {
        RgbaImage::from_fn(6, 4, |x, _| {
            if x < 3 { [255, 0, 0, 255] } else { [0, 0, 255, 255] }.into()
        })
    }

    #[test]
    fn four_formats_are_read_and_no_other() {
        for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Gif] {
            let seen = picture(&encoded(&halves(), format)).unwrap();
            assert_eq!(seen.size(), (6, 4));
            let [red, _, blue, _] = seen.0.get_pixel(0, 0).0;
            assert!(red > 200 && blue < 60, "{format:?}: {red} {blue}");
        }
        let why = picture(&encoded(&halves(), ImageFormat::Bmp)).err().unwrap();
        assert!(why.contains("is no PNG, JPEG, WebP or GIF"), "{why}");
        let why = picture(b"<svg/>").err().unwrap();
        assert!(why.contains("is no PNG"), "{why}");
    }

    #[test]
    fn a_broken_image_is_named_by_its_place() {
        let whole = encoded(&halves(), ImageFormat::Png);
        let cut = BASE64_STANDARD.encode(&whole[..whole.len() / 2]);
        let whole = BASE64_STANDARD.encode(whole);
        let (place, why) = decode([whole.as_str(), &cut].into_iter()).err().unwrap();
        assert_eq!(place, 1);
        assert!(why.contains("broken"), "{why}");
        let (place, why) = decode(["???"].into_iter()).err().unwrap();
        assert!(place == 0 && why.contains("base64"), "{why}");
    }

    #[test]
    fn what_would_become_too_many_pixels_is_refused_by_its_size() {
        // A GIF says its size in its first bytes.
        let bomb = |side: u16| {
            let mut gif = b"GIF89a".to_vec();
            gif.extend(side.to_le_bytes().into_iter().chain(side.to_le_bytes()));
            gif.extend([0, 0, 0, b',', 0, 0, 0, 0, 1, 0, 1, 0, 0, 2, 2, 0x44, 1, 0, b';']);
            gif
        };
        let why = picture(&bomb(6000)).err().unwrap();
        assert!(why.contains("6000 × 6000"), "{why}");
        assert!(picture(&bomb(u16::MAX)).is_err());
        // Together, too.
        let (one, two) = (RgbaImage::new(5000, 5000), RgbaImage::new(4000, 4000));
        let [one, two] = [one, two].map(|image| BASE64_STANDARD.encode(encoded(&image, ImageFormat::Png)));
        let place = decode([one.as_str(), &two].into_iter()).err().map(|(place, _)| place);
        assert_eq!(place, Some(1));
    }

    #[test]
    fn a_photo_is_turned_the_right_way_up() {
        let photo = encoded(&halves(), ImageFormat::Jpeg);
        // After its first two bytes: an Exif segment whose only entry says that the top is on the right (6).
        let exif = b"\xff\xe1\x00\x22Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
        let turned = [&photo[..2], exif, &photo[2..]].concat();
        assert_eq!(picture(&turned).unwrap().size(), (4, 6));
    }

    #[test]
    fn equal_bytes_in_another_shape_are_another_image() {
        let [wide, tall] = [(8, 2), (2, 8)].map(|(width, height)| {
            let image = RgbaImage::from_pixel(width, height, [9, 9, 9, 255].into());
            picture(&encoded(&image, ImageFormat::Png)).unwrap().0.into_raw()
        });
        assert_ne!(wide, tall);
    }
}
