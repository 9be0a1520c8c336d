"""BibTeX of the papers that the methods come from."""

BIBTEX = {
    "ho2020": """@inproceedings{ho2020,
  author = {Ho, Jonathan and Jain, Ajay and Abbeel, Pieter},
  title = {Denoising Diffusion Probabilistic Models},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2020}, eprint = {2006.11239}, archivePrefix = {arXiv}
}""",
    "song2021a": """@inproceedings{song2021a,
  author = {Song, Jiaming and Meng, Chenlin and Ermon, Stefano},
  title = {Denoising Diffusion Implicit Models},
  booktitle = {International Conference on Learning Representations},
  year = {2021}, eprint = {2010.02502}, archivePrefix = {arXiv}
}""",
    "karras2022": """@inproceedings{karras2022,
  author = {Karras, Tero and Aittala, Miika and Aila, Timo and Laine, Samuli},
  title = {Elucidating the Design Space of Diffusion-Based Generative Models},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2022}, eprint = {2206.00364}, archivePrefix = {arXiv}
}""",
    "kutta1901": """@article{kutta1901,
  author = {Kutta, Wilhelm},
  title = {Beitrag zur n{\\"a}herungsweisen Integration totaler Differentialgleichungen},
  journal = {Zeitschrift f{\\"u}r Mathematik und Physik},
  volume = {46}, pages = {435--453}, year = {1901}
}""",
    "hairer1993": """@book{hairer1993,
  author = {Hairer, Ernst and N{\\o}rsett, Syvert P. and Wanner, Gerhard},
  title = {Solving Ordinary Differential Equations I: Nonstiff Problems},
  publisher = {Springer}, edition = {2}, year = {1993}
}""",
    "zhang2023": """@inproceedings{zhang2023,
  author = {Zhang, Qinsheng and Chen, Yongxin},
  title = {Fast Sampling of Diffusion Models with Exponential Integrator},
  booktitle = {International Conference on Learning Representations},
  year = {2023}, eprint = {2204.13902}, archivePrefix = {arXiv}
}""",
    "liu2022": """@inproceedings{liu2022,
  author = {Liu, Luping and Ren, Yi and Lin, Zhijie and Zhao, Zhou},
  title = {Pseudo Numerical Methods for Diffusion Models on Manifolds},
  booktitle = {International Conference on Learning Representations},
  year = {2022}, eprint = {2202.09778}, archivePrefix = {arXiv}
}""",
    "lu2022a": """@inproceedings{lu2022a,
  author = {Lu, Cheng and Zhou, Yuhao and Bao, Fan and Chen, Jianfei and Li, Chongxuan and Zhu, Jun},
  title = {{DPM-Solver}: A Fast {ODE} Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2022}, eprint = {2206.00927}, archivePrefix = {arXiv}
}""",
    "crowson2022": """@misc{crowson2022,
  author = {Crowson, Katherine},
  title = {k-diffusion},
  howpublished = {\\url{https://github.com/crowsonkb/k-diffusion}},
  year = {2022}
}""",
    "lu2022b": """@article{lu2022b,
  author = {Lu, Cheng and Zhou, Yuhao and Bao, Fan and Chen, Jianfei and Li, Chongxuan and Zhu, Jun},
  title = {{DPM-Solver++}: Fast Solver for Guided Sampling of Diffusion Probabilistic Models},
  journal = {arXiv preprint arXiv:2211.01095}, year = {2022}
}""",
    "zhao2023": """@inproceedings{zhao2023,
  author = {Zhao, Wenliang and Bai, Lujia and Rao, Yongming and Zhou, Jie and Lu, Jiwen},
  title = {{UniPC}: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2023}, eprint = {2302.04867}, archivePrefix = {arXiv}
}""",
    "xue2023": """@inproceedings{xue2023,
  author = {Xue, Shuchen and Yi, Mingyang and Luo, Weijian and Zhang, Shifeng and Sun, Jiacheng and
    Li, Zhenguo and Ma, Zhi-Ming},
  title = {{SA-Solver}: Stochastic {Adams} Solver for Fast Sampling of Diffusion Models},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2023}, eprint = {2309.05019}, archivePrefix = {arXiv}
}""",
}
