"""BibTeX entries for the model card of a checkpoint."""

from __future__ import annotations

from ..configuration.configuration_selfvit import SelfViTConfig

SELFVIT = """@software{selfvit,
  title = {selfvit: self-supervised vision transformers as transformers models},
  license = {Apache-2.0}
}"""

DINO = r"""@inproceedings{caron2021emerging,
  title = {Emerging Properties in Self-Supervised Vision Transformers},
  author = {Caron, Mathilde and Touvron, Hugo and Misra, Ishan and J\'egou, Herv\'e and
            Mairal, Julien and Bojanowski, Piotr and Joulin, Armand},
  booktitle = {ICCV},
  year = {2021},
  note = {arXiv 2104.14294}
}"""

DINOV2 = r"""@article{oquab2024dinov2,
  title = {{DINO}v2: Learning Robust Visual Features without Supervision},
  author = {Oquab, Maxime and Darcet, Timoth\'ee and Moutakanni, Th\'eo and Vo, Huy and others},
  journal = {Transactions on Machine Learning Research},
  year = {2024},
  note = {arXiv 2304.07193}
}"""

IBOT = """@inproceedings{zhou2022ibot,
  title = {{iBOT}: Image {BERT} Pre-Training with Online Tokenizer},
  author = {Zhou, Jinghao and Wei, Chen and Wang, Huiyu and Shen, Wei and Xie, Cihang and
    Yuille, Alan and Kong, Tao},
  booktitle = {International Conference on Learning Representations},
  year = {2022},
  note = {arXiv 2111.07832}
}"""

DINOV3 = r"""@misc{simeoni2025dinov3,
  title = {{DINO}v3},
  author = {Sim\'eoni, Oriane and Vo, Huy V. and Seitzer, Maximilian and Baldassarre, Federico and
    Oquab, Maxime and others},
  year = {2025},
  note = {arXiv 2508.10104}
}"""

SEED = """@inproceedings{fang2021seed,
  title = {SEED: Self-supervised Distillation For Visual Representation},
  author = {Fang, Zhiyuan and Wang, Jianfeng and Wang, Lijuan and Zhang, Lei and Yang, Yezhou and
            Liu, Zicheng},
  booktitle = {ICLR},
  year = {2021},
  note = {arXiv 2101.04731}
}"""

PATIENT = r"""@inproceedings{beyer2022knowledge,
  title = {Knowledge Distillation: A Good Teacher is Patient and Consistent},
  author = {Beyer, Lucas and Zhai, Xiaohua and Royer, Am\'elie and Markeeva, Larisa and
            Anil, Rohan and Kolesnikov, Alexander},
  booktitle = {CVPR},
  year = {2022},
  note = {arXiv 2106.05237}
}"""

LEJEPA = """@misc{balestriero2025lejepa,
  title = {LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics},
  author = {Balestriero, Randall and LeCun, Yann},
  year = {2025},
  note = {arXiv 2511.08544}
}"""

VISREG = """@misc{wu2026visreg,
  title = {VISReg: Variance-Invariance-Sketching Regularization for JEPA training},
  author = {Wu, Haiyu and Balestriero, Randall and Levine, Morgan},
  year = {2026},
  note = {arXiv 2606.02572}
}"""

MAE = r"""@inproceedings{he2022masked,
  title = {Masked Autoencoders Are Scalable Vision Learners},
  author = {He, Kaiming and Chen, Xinlei and Xie, Saining and Li, Yanghao and Doll\'ar, Piotr and
            Girshick, Ross},
  booktitle = {CVPR},
  year = {2022},
  note = {arXiv 2111.06377}
}"""

MSN = """@inproceedings{assran2022masked,
  title = {Masked Siamese Networks for Label-Efficient Learning},
  author = {Assran, Mahmoud and Caron, Mathilde and Misra, Ishan and Bojanowski, Piotr and
            Bordes, Florian and Vincent, Pascal and Joulin, Armand and Rabbat, Michael and
            Ballas, Nicolas},
  booktitle = {ECCV},
  year = {2022},
  note = {arXiv 2204.07141}
}"""

PMSN = """@inproceedings{assran2023hidden,
  title = {The Hidden Uniform Cluster Prior in Self-Supervised Learning},
  author = {Assran, Mahmoud and Balestriero, Randall and Duval, Quentin and Bordes, Florian and
            Misra, Ishan and Bojanowski, Piotr and Vincent, Pascal and Rabbat, Michael and
            Ballas, Nicolas},
  booktitle = {ICLR},
  year = {2023},
  note = {arXiv 2210.07277}
}"""


PAPERS = {
    "DINO": [DINO],
    "DINOv2": [DINOV2, IBOT],
    "DINOv2 with Gram anchoring": [DINOV2, IBOT, DINOV3],
    "distillation": [SEED, PATIENT],
    "LeJEPA": [LEJEPA],
    "VISReg": [LEJEPA, VISREG],
    "MAE": [MAE],
    "MSN": [MSN],
    "PMSN": [MSN, PMSN],
}


def objective_of(config: SelfViTConfig) -> str | None:
    """Return the name of the training objective (a key of `PAPERS`), or None.

    Args:
        config: Configuration of the model.
    """
    for field in SelfViTConfig.sub_configs_defaults:
        part = getattr(config, field)
        if part is not None:
            if field == "pmsn_config" and part.prior == "uniform":
                return "MSN"
            if field == "dinov2_config":
                return "DINOv2 with Gram anchoring" if part.gram_weight else "DINOv2"
            if field == "distill_config":
                return "distillation"
            if field == "lejepa_config":
                return "VISReg" if part.regularizer == "visreg" else "LeJEPA"
            return field.removesuffix("_config").upper()
    return None


def citations_of(objective: str | None) -> str:
    """Return the BibTeX entries of an objective and of selfvit.

    Args:
        objective: Name of the objective, as returned by `objective_of`, or None.
    """
    return "\n\n".join([*PAPERS.get(objective or "", []), SELFVIT])


__all__ = ["citations_of", "objective_of"]
