"""Help texts of the options that several commands share, by option name.

`selfvit train` builds its options from the configuration of a run, and the other commands declare
theirs in `commands/`; both use these texts. Every folder of the package may import this module.
"""

HELP = {
    "data": "Images: a folder, image files, Parquet files, WebDataset tars, a zip, a list of paths "
    "(.txt, .csv, .jsonl), the URL of images (s3://...), or a Hub dataset id.",
    "split": "Split of a dataset or of folders such as train and test (or all), or a subfolder.",
    "image_column": "Column that holds the images.",
    "label_column": "Column that holds the labels.",
    "strict": "Exit with code 1 if any image was left out.",
    "output": "Folder or file to write.",
    "overwrite": "Replace an earlier output.",
    "resume": "Continue the run that was interrupted in --output.",
    "batch_size": "Number of images per batch; in training, of an optimizer step.",
    "num_workers": "Number of processes that decode images; 0 decodes in the main process.",
    "pooling": "Pooling of the tokens: cls, mean, cls+mean, gem or concat:N.",
    "image_size": "Image size in pixels: one number, or height and width (224 or 224 336).",
    "num_channels": "Number of channels of the images: 1 is gray, 3 is RGB; another number must "
    "be that of the files.",
    "streaming": "Read Parquet, WebDataset tars or a Hub dataset as a stream.",
    "pixel_range": "Values of black and white in files of more than eight bits: LOW HIGH.",
    "bits": "Number of bits that such files use: 12 is --pixel-range 0 4095.",
    "image_mean": "Mean of each channel, pixels in 0 to 1; `selfvit stats` measures it.",
    "image_std": "Std of each channel, pixels in 0 to 1; `selfvit stats` measures it.",
    "norm_pix_loss": "Whether MAE's decoder predicts normalized pixels instead of raw ones.",
    "mask_ratio": "Fraction of the patches to mask.",
    "seed": "Random seed.",
    "save_code": "Save the model's code with the checkpoint, so that it opens without selfvit.",
}

__all__ = ["HELP"]
