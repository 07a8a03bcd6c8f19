"""The notice that the template asks for: every page and card about phantoms prints it."""

ICBM152_NOTICE = (
    "The phantoms are built on the ICBM 2009a nonlinear symmetric templates. Copyright (C) "
    "1993–2009 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological Institute, "
    "McGill University. Permission to use, copy, modify, and distribute this software and its "
    "documentation for any purpose and without fee is hereby granted, provided that the above "
    "copyright notice appear in all copies. The authors and McGill University make no "
    "representations about the suitability of this software for any purpose. It is provided "
    "“as is” without express or implied warranty. The authors are not responsible for any data "
    "loss, equipment damage, property loss, or injury to subjects or patients resulting from the "
    "use or misuse of this software package."
)
ICBM152_CITATIONS = (
    "V. Fonov, A. C. Evans, K. Botteron, C. R. Almli, R. C. McKinstry, D. L. Collins and the "
    "Brain Development Cooperative Group. Unbiased average age-appropriate atlases for pediatric "
    "studies. NeuroImage 54(1), 2011.",
    "V. Fonov, A. C. Evans, R. C. McKinstry, C. R. Almli, D. L. Collins. Unbiased nonlinear "
    "average age-appropriate brain templates from birth to adulthood. NeuroImage 47, 2009.",
    "D. L. Collins, A. P. Zijdenbos, W. F. C. Baaré, A. C. Evans. ANIMAL+INSECT: improved "
    "cortical structure segmentation. IPMI, 1999.",
)
