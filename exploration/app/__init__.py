"""The app of `selfvit explore`, which shows a collection in the browser."""
